"""Evaluation on held-out rows: arms, statistics, protocol, verdict. No language model judges another one."""
