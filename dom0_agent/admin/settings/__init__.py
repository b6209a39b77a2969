"""A qube's settings and dom0's configuration: taken down, planned, applied one by one."""
