// A bridge by an engineer who knows that an ALB reads only the gRPC status code: each Check makes
// one HTTP request with a timeout, and anything but a 2xx is UNAVAILABLE with a reason.
//
// It has no cache, as is usual: each Check sees the gateway as it is now. Connections to the
// gateway are kept, and a caller that leaves cancels its request. With -fresh, each request has a
// connection of its own, as blackbox_exporter makes its probes.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

const (
	timeout  = 3 * time.Second // as ghealth's PROBE_TIMEOUT
	idleKept = 64
	bodyRead = 4 << 10 // a short body is read, so that its connection can be used again
)

type bridge struct {
	healthpb.UnimplementedHealthServer
	client *http.Client
	url    string
}

func (b *bridge) Check(ctx context.Context, request *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	if request.Service != "" {
		return nil, status.Error(codes.NotFound, "unknown service")
	}
	if err := b.probe(ctx); err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	return &healthpb.HealthCheckResponse{Status: healthpb.HealthCheckResponse_SERVING}, nil
}

func (b *bridge) probe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, b.url, nil)
	if err != nil {
		return err
	}
	response, err := b.client.Do(request)
	if errors.Is(err, context.DeadlineExceeded) {
		return errors.New("gateway timed out")
	}
	if err != nil {
		return errors.New("gateway unreachable")
	}
	defer response.Body.Close()
	io.CopyN(io.Discard, response.Body, bodyRead)
	if response.StatusCode/100 != 2 {
		return fmt.Errorf("gateway answered %d", response.StatusCode)
	}
	return nil
}

func main() {
	listen := flag.String("listen", "127.0.0.1:25021", "address to serve on")
	url := flag.String("url", "http://localhost:15021/healthz/ready", "URL to probe")
	fresh := flag.Bool("fresh", false, "a new connection for each probe")
	flag.Parse()

	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatal(err)
	}
	server := grpc.NewServer()
	healthpb.RegisterHealthServer(server, &bridge{
		client: &http.Client{
			Transport: &http.Transport{
				MaxIdleConnsPerHost: idleKept,
				IdleConnTimeout:     time.Minute,
				DisableKeepAlives:   *fresh,
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		url: *url,
	})
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	go func() {
		<-ctx.Done()
		server.GracefulStop()
	}()
	if err := server.Serve(listener); err != nil {
		log.Fatal(err)
	}
}
