"""What lies in the folder of a run, for whoever reads one."""
