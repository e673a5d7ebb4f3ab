package headgate

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	_ "embed"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	_ "google.golang.org/grpc/health" // the service config asks servers whether they are ready
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
)

// DefaultTimeout is the deadline of calls whose context has none. It is the server's own default, too.
const DefaultTimeout = 10 * time.Minute

// DefaultMaxMessageSize is the largest message sent or received, in bytes.
const DefaultMaxMessageSize = 256 << 20

// ServiceConfig is the gRPC service config that every client of Headgate uses: retries of UNAVAILABLE before the first
// content, round robin over all addresses, and no calls to servers that are not ready.
//
//go:embed service_config.json
var ServiceConfig string

// An Option changes how a client connects and calls.
type Option func(*settings)

type settings struct {
	timeout        time.Duration
	maxMessageSize int
	tls            *tls.Config
	plaintext      bool
	token          func(context.Context) (string, error)
	serviceConfig  string
	batch          embedBatch
	dialing        []grpc.DialOption
	err            error
}

func defaults() settings {
	made := settings{
		timeout:        DefaultTimeout,
		maxMessageSize: DefaultMaxMessageSize,
		serviceConfig:  ServiceConfig,
		batch:          embedBatch{DefaultEmbedBatch, DefaultEmbedConcurrency},
	}
	if key := os.Getenv("HEADGATE_API_KEY"); key != "" {
		WithAPIKey(key)(&made)
	}
	return made
}

// WithAPIKey sends an API key of Headgate's with every call; an empty one sends none, whatever the environment says.
func WithAPIKey(key string) Option {
	if key == "" {
		return WithTokenSource(nil)
	}
	return WithTokenSource(func(context.Context) (string, error) { return key, nil })
}

// WithTokenSource asks source for the bearer token of every call, such as an identity provider's. It is called for each
// attempt, so it should keep a token while it is good.
func WithTokenSource(source func(context.Context) (string, error)) Option {
	return func(s *settings) { s.token = source }
}

// WithTLS calls with TLS by this configuration; nil trusts the system's authorities. Certificates make it mTLS.
func WithTLS(config *tls.Config) Option {
	if config == nil {
		config = &tls.Config{}
	}
	return func(s *settings) { s.tls = config.Clone() }
}

// WithTLSFiles calls with TLS, trusting the authorities in the PEM file authority (empty for the system's), and shows
// the certificate and key of the other two files if they are given.
func WithTLSFiles(authority, certificate, key string) Option {
	return func(s *settings) {
		s.tls = &tls.Config{}
		if authority != "" {
			s.tls.RootCAs = x509.NewCertPool()
			if pem, err := os.ReadFile(authority); err != nil {
				s.err = errors.Join(s.err, err)
			} else if !s.tls.RootCAs.AppendCertsFromPEM(pem) {
				s.err = errors.Join(s.err, fmt.Errorf("%s holds no certificate in PEM", authority))
			}
		}
		if certificate != "" || key != "" {
			pair, err := tls.LoadX509KeyPair(certificate, key)
			s.err = errors.Join(s.err, err)
			s.tls.Certificates = []tls.Certificate{pair}
		}
	}
}

// WithInsecure calls in the clear whatever the address. Keys and prompts can be read on the way.
func WithInsecure() Option {
	return func(s *settings) { s.plaintext = true }
}

// WithTimeout is the deadline of calls whose context has none; 0 for no deadline.
func WithTimeout(timeout time.Duration) Option {
	return func(s *settings) { s.timeout = timeout }
}

// WithMaxMessageSize is the largest message sent or received, in bytes.
func WithMaxMessageSize(bytes int) Option {
	return func(s *settings) { s.maxMessageSize = bytes }
}

// WithServiceConfig takes another gRPC service config, as JSON, in place of [ServiceConfig]; "{}" for no retries.
func WithServiceConfig(json string) Option {
	return func(s *settings) { s.serviceConfig = json }
}

// WithEmbedBatch splits embeddings of more inputs than this into calls of that many, so many of them at once.
func WithEmbedBatch(inputs, concurrency int) Option {
	return func(s *settings) {
		if inputs < 1 || concurrency < 1 {
			s.err = errors.Join(s.err, errors.New("a batch has at least one input and one call at once"))
		}
		s.batch = embedBatch{inputs, concurrency}
	}
}

// WithDialOptions adds gRPC's own options, such as OpenTelemetry's stats handler. They win over this package's.
func WithDialOptions(options ...grpc.DialOption) Option {
	return func(s *settings) { s.dialing = append(s.dialing, options...) }
}

// dial returns gRPC's target and options for an address.
func (s *settings) dial(address string) (string, []grpc.DialOption, error) {
	if s.plaintext && s.tls != nil {
		s.err = errors.Join(s.err, errors.New("TLS and WithInsecure exclude each other"))
	}
	if s.err != nil {
		return "", nil, fmt.Errorf("headgate: %w", s.err)
	}
	addresses := strings.Split(address, ",")
	transport := credentials.NewTLS(s.tls)
	inTheClear := s.plaintext || s.tls == nil && allLoopback(addresses)
	if inTheClear {
		transport = insecure.NewCredentials()
	}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(transport),
		grpc.WithDefaultServiceConfig(s.serviceConfig),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.WithConnectParams(reconnecting()),
		grpc.WithUserAgent("headgate-go/" + Version),
		grpc.WithDefaultCallOptions(
			grpc.MaxCallRecvMsgSize(s.maxMessageSize), grpc.MaxCallSendMsgSize(s.maxMessageSize),
		),
	}
	if s.token != nil {
		options = append(options, grpc.WithPerRPCCredentials(bearer{s.token, !inTheClear}))
	}
	if len(addresses) > 1 {
		listed := manual.NewBuilderWithScheme("headgate")
		state := resolver.State{}
		for _, one := range addresses {
			endpoint := resolver.Address{Addr: one, ServerName: hostOf(one)}
			state.Endpoints = append(state.Endpoints, resolver.Endpoint{Addresses: []resolver.Address{endpoint}})
		}
		listed.InitialState(state)
		options = append(options, grpc.WithResolvers(listed))
		address = "headgate:///" + hostOf(addresses[0])
	}
	return address, append(options, s.dialing...), nil
}

// reconnecting tries an address again after 10 s at most: gRPC's own two minutes outlast most restarts.
func reconnecting() grpc.ConnectParams {
	params := grpc.ConnectParams{Backoff: backoff.DefaultConfig, MinConnectTimeout: 20 * time.Second}
	params.Backoff.MaxDelay = 10 * time.Second
	return params
}

func allLoopback(addresses []string) bool {
	for _, address := range addresses {
		host := hostOf(address)
		ip := net.ParseIP(host)
		socket := strings.HasPrefix(address, "unix:") || strings.HasPrefix(address, "unix-abstract:")
		if scheme, rest, found := strings.Cut(address, "://"); found && !(scheme == "dns" && strings.HasPrefix(rest, "/")) {
			host = rest // whoever resolves the name, such as the DNS server in the address, may send it anywhere
		}
		if !socket && host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			return false
		}
	}
	return true
}

func hostOf(address string) string {
	address = address[strings.LastIndex(address, "/")+1:]
	if host, _, err := net.SplitHostPort(address); err == nil {
		return host
	}
	return address
}

// bearer is gRPC's seam for credentials of a call.
type bearer struct {
	token  func(context.Context) (string, error)
	secure bool
}

func (b bearer) GetRequestMetadata(ctx context.Context, _ ...string) (map[string]string, error) {
	token, err := b.token(ctx)
	if err != nil {
		return nil, err
	}
	return map[string]string{"authorization": "Bearer " + token}, nil
}

func (b bearer) RequireTransportSecurity() bool {
	return b.secure
}
