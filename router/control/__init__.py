"""Changes of the served models: operators' commands and the reassessment loop."""
