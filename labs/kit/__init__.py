"""What all labs share: checks and points, the grader, hosts for bare kernels, questions."""
