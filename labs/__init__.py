"""Labs: a course on paravirtualization. Pages, skeletons, graders and solutions (`paravirt lab`)."""
