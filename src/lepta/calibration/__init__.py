"""Self-calibration (paper 2.4.2): the original model's own graded answers, and copies, for the propagated one."""
