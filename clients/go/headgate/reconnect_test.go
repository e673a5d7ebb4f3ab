package headgate_test

import (
	"context"
	"errors"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"

	"headgate.dev/go/headgate"
)

func TestAddressThatWasLongDownIsTriedAgainWithinSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // where minutes pass at once
		var last time.Time
		var longest time.Duration
		tries := 0
		down := func(context.Context, string) (net.Conn, error) {
			if tries++; tries > 1 {
				longest = max(longest, time.Since(last))
			}
			last = time.Now()
			return nil, errors.New("nobody listens")
		}
		client, err := headgate.New("passthrough:///down", headgate.WithInsecure(),
			headgate.WithDialOptions(grpc.WithContextDialer(down)))
		if err != nil {
			t.Fatal(err)
		}
		_, err = client.Health(t.Context())
		time.Sleep(20 * time.Minute)
		if closed := client.Close(); err == nil || closed != nil {
			t.Errorf("answered: %v, %v", err, closed)
		}
		synctest.Wait()
		if tries < 100 || longest > 12*time.Second { // 10 s and 20 % of chance
			t.Errorf("%d tries, at most %v apart", tries, longest)
		}
	})
}
