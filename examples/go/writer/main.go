// Deposits an amount: state and event in one transaction.
//
//	DATABASE_URL=postgres://... TRACEPARENT=00-... go run ./writer ann 500
package main

import (
	"context"
	"log"
	"os"
	"strconv"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

type depositedV1 struct {
	AccountID string `json:"account_id"`
	Version   int64  `json:"version"`
	Amount    int64  `json:"amount"`
}

func deposit(ctx context.Context, db *pgx.Conn, account string, amount int64, traceparent string) error {
	return pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		event := depositedV1{AccountID: account, Amount: amount}
		// The state first: this statement locks the row, so events of one account are committed in the order of their versions.
		err := tx.QueryRow(ctx, `INSERT INTO account AS a (account_id, balance, version) VALUES ($1, $2, 1)
			ON CONFLICT (account_id) DO UPDATE SET balance = a.balance + excluded.balance, version = a.version + 1
			RETURNING version`, account, amount).Scan(&event.Version)
		if err != nil {
			return err
		}
		id, err := uuid.NewV7()
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload, traceparent)
			VALUES ($1, 'account', $2, 'account.deposited.v1', $3, nullif($4, ''))`, id, account, event, traceparent)
		return err
	})
}

func main() {
	ctx := context.Background()
	amount, err := strconv.ParseInt(os.Args[2], 10, 64)
	if err != nil {
		log.Fatal(err)
	}
	db, err := pgx.Connect(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		log.Fatal(err)
	}
	defer db.Close(ctx)
	if err := deposit(ctx, db, os.Args[1], amount, os.Getenv("TRACEPARENT")); err != nil {
		log.Fatal(err)
	}
}
