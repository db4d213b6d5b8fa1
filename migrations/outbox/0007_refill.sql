-- A refill (source.onGap: Refill): the relay replaces a lost slot, and delivers the rows that it would have streamed. Until they are
-- delivered the confirmed LSN, the delivered snapshot and its offsets stay as they are.

ALTER TABLE outbox_checkpoint
    ADD COLUMN IF NOT EXISTS refill_cause     text          CHECK (refill_cause IN ('SlotLost', 'SlotAhead')),   -- of the refill in progress
    ADD COLUMN IF NOT EXISTS slot_replaced_at timestamptz[] NOT NULL DEFAULT '{}';                               -- within the hour before the last one
