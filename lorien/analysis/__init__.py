"""What the notebooks ask of logs, features and models, as functions; and their figures."""
