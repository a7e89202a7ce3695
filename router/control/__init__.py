"""Who changes what serves: operators' commands and the reassessment loop."""
