// Applies each event once: inbox row and effect in one transaction, the offset after it. Its supervisor restarts it.
package main

import (
	"context"
	"errors"
	"log"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/twmb/franz-go/pkg/kgo"
)

// process applies the record, or keeps it as rejected if it can never be applied. Any other error is returned.
func process(ctx context.Context, db *pgx.Conn, record *kgo.Record) error {
	event, err := decode(record)
	if err == nil {
		err = apply(ctx, db, event)
		var refused *pgconn.PgError
		// SQLSTATE classes 22 and 23: values that a column or constraint refuses.
		poison := errors.Is(err, errVersionReused) ||
			errors.As(err, &refused) && (strings.HasPrefix(refused.Code, "22") || strings.HasPrefix(refused.Code, "23"))
		if !poison {
			return err
		}
	}
	_, err = db.Exec(ctx, `INSERT INTO rejected (topic, partition, "offset", reason, headers, key, value)
		VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING`, record.Topic, record.Partition, record.Offset,
		strings.ReplaceAll(err.Error(), "\x00", ""), headers(record), record.Key, record.Value)
	return err
}

var errVersionReused = errors.New("the version arrived before, with another event id")

func apply(ctx context.Context, db *pgx.Conn, event event) error {
	return pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		inbox, err := tx.Exec(ctx, "INSERT INTO inbox (event_id, traceparent) VALUES ($1, $2) ON CONFLICT DO NOTHING",
			event.id, continued(event.traceparent))
		if err != nil || inbox.RowsAffected() == 0 {
			return err
		}
		var missing *string
		err = tx.QueryRow(ctx, "SELECT apply_deposit($1, $2, $3)::text", event.AccountID, event.Amount, event.Version).Scan(&missing)
		if err == nil && missing == nil {
			return errVersionReused
		}
		if err == nil {
			log.Println("applied", event.id, "missing versions:", *missing)
		}
		return err
	})
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	db, err := pgx.Connect(context.Background(), os.Getenv("DATABASE_URL"))
	if err != nil {
		log.Fatal(err)
	}
	client, err := kgo.NewClient(kgo.SeedBrokers(os.Getenv("KAFKA_BOOTSTRAP_SERVERS")), kgo.ConsumerGroup(os.Getenv("KAFKA_GROUP")),
		kgo.ConsumeTopics(os.Getenv("KAFKA_TOPIC")), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.SessionTimeout(10*time.Second), kgo.AutoCommitMarks())
	if err != nil {
		log.Fatal(err)
	}
	for ctx.Err() == nil {
		client.PollFetches(ctx).EachRecord(func(record *kgo.Record) {
			if err := process(context.Background(), db, record); err != nil {
				log.Fatal(err)
			}
			client.MarkCommitRecords(record)
		})
	}
	if err := client.CommitMarkedOffsets(context.Background()); err != nil {
		log.Fatal(err)
	}
	client.Close() // Leaves the group.
}
