"""The study of students in the plane."""
