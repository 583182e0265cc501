"""What logs, tables, models and databases hold, counted for people: the page of ``lorien report``, and notebooks."""
