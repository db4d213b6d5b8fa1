-- The relay's role, what it may do, and the publication that it reads. Run by the owner of the outbox table, with the right to create roles.
CREATE ROLE outbox_relay LOGIN REPLICATION PASSWORD 'change-me';
GRANT SELECT ON outbox TO outbox_relay;
GRANT SELECT, INSERT, UPDATE ON outbox_checkpoint TO outbox_relay;
GRANT EXECUTE ON FUNCTION outbox_maintain(interval, interval), outbox_partition_state() TO outbox_relay;
CREATE PUBLICATION outbox FOR TABLE outbox WITH (publish = 'insert', publish_via_partition_root = true);
