// A bridge as people write it first: a gRPC health server that makes one HTTP request for each
// Check, and answers SERVING to a 2xx. No cache, no timeout, no sharing.
package main

import (
	"context"
	"flag"
	"log"
	"net"
	"net/http"

	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

type bridge struct {
	healthpb.UnimplementedHealthServer
	url string
}

func (b *bridge) Check(ctx context.Context, _ *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	status := healthpb.HealthCheckResponse_NOT_SERVING
	response, err := http.Get(b.url)
	if err == nil {
		response.Body.Close()
		if response.StatusCode/100 == 2 {
			status = healthpb.HealthCheckResponse_SERVING
		}
	}
	return &healthpb.HealthCheckResponse{Status: status}, nil
}

func main() {
	listen := flag.String("listen", "127.0.0.1:25021", "address to serve on")
	url := flag.String("url", "http://localhost:15021/healthz/ready", "URL to probe")
	flag.Parse()

	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatal(err)
	}
	server := grpc.NewServer()
	healthpb.RegisterHealthServer(server, &bridge{url: *url})
	log.Fatal(server.Serve(listener))
}
