package headgate

import (
	"context"
	"io"
	"iter"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	headgatev1 "headgate.dev/go/headgate/v1"
)

// A Stream is an answer as it comes. Read it by one of Events, Text and Final, from one goroutine; leaving a loop early
// cancels the call, up to the vendor.
//
// An answer is complete only if its end came and the status is OK: everything else ends with an error, which has what
// came before it in [CallFailed.Partial].
type Stream struct {
	ctx     context.Context
	client  *Client
	request *headgatev1.GenerateRequest

	call      grpc.ServerStreamingClient[Event]
	cancel    context.CancelFunc
	requestID string
	folded    *fold
	begun     bool
	err       error
}

// Events yields every event that this client knows; an error is the last.
func (s *Stream) Events() iter.Seq2[*Event, error] {
	return func(yield func(*Event, error) bool) {
		for {
			event, err := s.next()
			if err == io.EOF {
				return
			}
			if !yield(event, err) {
				s.Close()
				return
			}
			if err != nil {
				return
			}
		}
	}
}

// Text yields the first candidate's text, piece by piece; an error is the last.
func (s *Stream) Text() iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for event, err := range s.Events() {
			text := textOf(event)
			if (err != nil || text != "") && !yield(text, err) {
				return
			}
		}
	}
}

// Final reads what is left and returns the whole answer, which equals what Generate would have returned.
func (s *Stream) Final() (*Answer, error) {
	for {
		switch _, err := s.next(); err {
		case nil:
		case io.EOF:
			return s.answer(), nil
		default:
			return nil, err
		}
	}
}

// Close leaves the call. A stream that was read to its end is closed.
func (s *Stream) Close() {
	if s.err == nil {
		s.fail(status.Error(codes.Canceled, "the stream was left before its end"))
	}
}

func (s *Stream) next() (*Event, error) {
	for s.err == nil {
		if s.call == nil {
			s.open()
			continue
		}
		event, err := s.call.Recv()
		switch {
		case err == io.EOF && s.folded.complete:
			s.cancel()
			s.err = io.EOF
		case err == io.EOF:
			s.fail(status.Error(codes.Aborted, "the stream ended without the answer's end"))
		case err != nil:
			s.fail(err)
		default:
			s.begun = true
			s.folded.add(event)
			if event.Event != nil {
				return event, nil
			}
		}
	}
	return nil, s.err
}

func (s *Stream) open() {
	ctx, cancel := s.client.deadline(s.ctx)
	ctx, s.requestID = withRequestID(ctx)
	s.cancel = cancel
	call, err := s.client.stub.StreamGenerate(ctx, s.request)
	if err != nil {
		s.fail(err)
		return
	}
	s.call = call
}

func (s *Stream) fail(err error) {
	if s.cancel != nil {
		s.cancel()
	}
	if s.begun {
		err = interruptedOr(err)
	}
	s.err = errorOf(err, s.requestID)
	if failed, ok := s.err.(failure); ok {
		failed.failed().Partial = s.answer()
		failed.failed().Retryable = failed.failed().Retryable && !s.begun
	}
}

func (s *Stream) answer() *Answer {
	return &Answer{s.folded.response(), s.requestID}
}

func textOf(event *Event) string {
	if event.GetCandidateIndex() != 0 {
		return ""
	}
	return event.GetTextDelta() + event.GetPartStart().GetPart().GetText()
}
