"""Early exit: exit heads, criteria, and the modes that leave before full depth."""
