"""TVM MetaSchedule."""
