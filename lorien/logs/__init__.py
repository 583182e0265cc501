"""Full tuning logs, in their native formats."""
