// Package headgate is the Go client of Headgate, one gRPC contract in front of every model vendor.
//
//	client, err := headgate.New("localhost:50051")
//	for text, err := range client.Stream(ctx, headgate.Ask("fast", "Hello")).Text() {
//		fmt.Print(text)
//	}
//
// Requests are the contract's own messages, of package headgatev1; [Ask], [User], [File] and [FunctionTool] write
// the usual ones. Every failed call is a [*CallFailed], most of them a more telling type that errors.As finds.
package headgate

import (
	"context"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	headgatev1 "headgate.dev/go/headgate/v1"
)

// Version is the release that this client belongs to: one version for server, contract and clients.
const Version = "0.1.0"

// A Client calls one Headgate. It is safe for concurrent use, keeps its connections open, and connects at the first
// call.
type Client struct {
	connection *grpc.ClientConn
	stub       headgatev1.InferenceServiceClient
	timeout    time.Duration
	batch      embedBatch
}

// New makes a client of the server at address: "host:port", several of them joined by commas, "dns:///name:port" for
// every address of a name, or "unix:/path". An empty address stands for $HEADGATE_ADDRESS, and without it
// localhost:50051; the API key is $HEADGATE_API_KEY unless an option gives credentials.
//
// Loopback addresses and sockets are called in the clear, all others with TLS, unless an option says otherwise.
func New(address string, options ...Option) (*Client, error) {
	if address == "" {
		address = os.Getenv("HEADGATE_ADDRESS")
	}
	if address == "" {
		address = "localhost:50051"
	}
	settings := defaults()
	for _, option := range options {
		option(&settings)
	}
	target, dialing, err := settings.dial(address)
	if err != nil {
		return nil, err
	}
	connection, err := grpc.NewClient(target, dialing...)
	if err != nil {
		return nil, err
	}
	return &Client{connection, headgatev1.NewInferenceServiceClient(connection), settings.timeout, settings.batch}, nil
}

// Close closes the connections; calls in flight fail.
func (c *Client) Close() error {
	return c.connection.Close()
}

// Stub returns the generated stub on the client's connections, for calls without this package's deadlines and errors.
func (c *Client) Stub() headgatev1.InferenceServiceClient {
	return c.stub
}

// Generate returns a whole answer. It equals the fold of the stream.
func (c *Client) Generate(ctx context.Context, request *headgatev1.GenerateRequest) (*Answer, error) {
	answer, requestID, err := unary(ctx, c, c.stub.Generate, request)
	if err != nil {
		return nil, err
	}
	return &Answer{answer, requestID}, nil
}

// Stream returns the stream of an answer. The call is made when the stream is first read.
func (c *Client) Stream(ctx context.Context, request *headgatev1.GenerateRequest) *Stream {
	return &Stream{ctx: ctx, client: c, request: request, folded: newFold()}
}

// Models returns every alias and model that the caller may name, sorted by name.
func (c *Client) Models(ctx context.Context) ([]*headgatev1.Model, error) {
	var models []*headgatev1.Model
	request := &headgatev1.ListModelsRequest{PageSize: 1000}
	for {
		page, _, err := unary(ctx, c, c.stub.ListModels, request)
		if err != nil {
			return nil, err
		}
		models = append(models, page.Models...)
		if page.NextPageToken == "" {
			return models, nil
		}
		request.PageToken = page.NextPageToken
	}
}

// Health returns the operator's view of the server and its providers.
func (c *Client) Health(ctx context.Context) (*headgatev1.HealthResponse, error) {
	health, _, err := unary(ctx, c, c.stub.Health, &headgatev1.HealthRequest{})
	return health, err
}

// unary makes one call with a deadline and a request id, and returns the answer, the id and an error of this package.
func unary[Request, Answer any](
	ctx context.Context,
	client *Client,
	method func(context.Context, Request, ...grpc.CallOption) (Answer, error),
	request Request,
) (Answer, string, error) {
	ctx, cancel := client.deadline(ctx)
	defer cancel()
	ctx, requestID := withRequestID(ctx)
	var header, trailer metadata.MD
	answer, err := method(ctx, request, grpc.Header(&header), grpc.Trailer(&trailer))
	if err != nil {
		var none Answer
		return none, requestID, errorOf(err, requestID)
	}
	return answer, firstOf(header, requestIDKey, requestID), nil
}

// deadline gives a call that has none the client's own.
func (c *Client) deadline(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, has := ctx.Deadline(); has || c.timeout == 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, c.timeout)
}
