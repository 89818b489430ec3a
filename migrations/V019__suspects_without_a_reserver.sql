-- No function has ever read or written this column: a suspect is taken with a row lock, and its row
-- goes with the claim. Functions of the previous release do not name it either, so workers go on
-- during the migration.
alter table command_bus_suspect drop column reserved_by;
