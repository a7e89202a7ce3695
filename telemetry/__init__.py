"""What is measured, where it is kept, and how it is looked at."""
