package main

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"
)

type event struct {
	id          uuid.UUID
	traceparent string
	AccountID   string `json:"account_id"`
	Version     int64  `json:"version"`
	Amount      uint32 `json:"amount"`
}

// decode reads a record. An error means that it can never take effect.
func decode(record *kgo.Record) (event event, err error) {
	headers := headers(record)
	event.traceparent = headers["traceparent"]
	if event.id, err = uuid.Parse(headers["ce_id"]); err != nil {
		return event, fmt.Errorf("header ce_id: %w", err)
	}
	if err = json.Unmarshal(record.Value, &event); err != nil {
		return event, err
	}
	if event.AccountID == "" || event.Version < 1 {
		return event, errors.New("account_id or version is missing")
	}
	if headers["ce_type"] != "account.deposited.v1" {
		event.Amount = 0 // Other types count as versions, too: without them, gaps would be reported.
	}
	return event, nil
}

func headers(record *kgo.Record) map[string]string {
	headers := map[string]string{}
	for _, header := range record.Headers {
		headers[header.Key] = strings.ReplaceAll(strings.ToValidUTF8(string(header.Value), ""), "\x00", "")
	}
	return headers
}

var valid = regexp.MustCompile("^00-([0-9a-f]{32})-[0-9a-f]{16}-([0-9a-f]{2})$")

// continued is a new span in the trace of a W3C traceparent, or in a new trace. OpenTelemetry's propagator does the same.
func continued(traceparent string) string {
	if parts := valid.FindStringSubmatch(traceparent); parts != nil && parts[1] != strings.Repeat("0", 32) {
		return "00-" + parts[1] + "-" + random(8) + "-" + parts[2]
	}
	return "00-" + random(16) + "-" + random(8) + "-00"
}

func random(bytes int) string {
	random := make([]byte, bytes)
	rand.Read(random) // Never fails: it ends the program instead.
	return hex.EncodeToString(random)
}
