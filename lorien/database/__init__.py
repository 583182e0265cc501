"""Best schedules per (target, workload)."""
