-- The declaration that the relay which last held the slot belongs to, as its configuration names it: under the operator the
-- resource's uid. The operator drops a slot only while this is its own resource. NULL: written by a relay of an earlier version.

ALTER TABLE outbox_checkpoint ADD COLUMN owner text;
