"""Running a recorded run again: the image from what is stored, the run from it, the comparison."""
