package headgate

import (
	"context"
	"crypto/rand"
	"encoding/hex"

	"google.golang.org/grpc/metadata"
)

const requestIDKey = "x-request-id"

// WithRequestID names the calls made with this context, in the server's log and in errors. Without it each call gets a
// random name.
func WithRequestID(ctx context.Context, id string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, requestIDKey, id)
}

func withRequestID(ctx context.Context) (context.Context, string) {
	sent, _ := metadata.FromOutgoingContext(ctx)
	if id := firstOf(sent, requestIDKey, ""); id != "" {
		return ctx, id
	}
	var random [16]byte
	_, _ = rand.Read(random[:]) // never fails: crypto/rand ends the program instead
	id := hex.EncodeToString(random[:])
	return WithRequestID(ctx, id), id
}

func firstOf(values metadata.MD, key, otherwise string) string {
	if found := values.Get(key); len(found) > 0 {
		return found[0]
	}
	return otherwise
}
