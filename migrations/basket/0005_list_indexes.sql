-- Lists read their pages by the order of an index: (filters, id), all of them ascending, because a row comparison is a bound
-- of an index only then. Each combination of filters has its own.
--
-- Building an index keeps writers waiting. Where the tables are large, create the same indexes beforehand with CREATE INDEX
-- CONCURRENTLY: docs/UPGRADE.md.

CREATE INDEX IF NOT EXISTS basket_view_owner_id ON basket_view (owner, id);
CREATE INDEX IF NOT EXISTS basket_view_owner_buyer_id ON basket_view (owner, buyer_id, id);
CREATE INDEX IF NOT EXISTS basket_view_owner_status_id ON basket_view (owner, status, id);
CREATE INDEX IF NOT EXISTS basket_view_owner_buyer_status_id ON basket_view (owner, buyer_id, status, id);
DROP INDEX IF EXISTS basket_view_by_owner, basket_view_by_buyer, basket_view_by_status, basket_view_by_buyer_and_status;

CREATE INDEX IF NOT EXISTS command_log_principal_id ON command_log (principal, id);
CREATE INDEX IF NOT EXISTS command_log_principal_type_id ON command_log (principal, command_type, id);
CREATE INDEX IF NOT EXISTS command_log_principal_outcome_id ON command_log (principal, outcome, id);
CREATE INDEX IF NOT EXISTS command_log_principal_type_outcome_id ON command_log (principal, command_type, outcome, id);
CREATE INDEX IF NOT EXISTS command_log_type_id ON command_log (command_type, id);
CREATE INDEX IF NOT EXISTS command_log_outcome_id ON command_log (outcome, id);
CREATE INDEX IF NOT EXISTS command_log_type_outcome_id ON command_log (command_type, outcome, id);
DROP INDEX IF EXISTS command_log_by_principal, command_log_by_principal_and_type, command_log_by_principal_and_outcome,
                     command_log_by_type, command_log_by_outcome;
