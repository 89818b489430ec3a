"""Where settings come from: environment, options, files, and what is stored in the database."""
