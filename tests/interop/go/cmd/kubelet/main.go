// Kubelet probes a gRPC health server with the kubelet's own code, once, and prints its verdict.
package main

import (
	"flag"
	"fmt"
	"time"

	"k8s.io/kubernetes/pkg/probe/grpc"
)

func main() {
	host := flag.String("host", "127.0.0.1", "whom to probe")
	port := flag.Int("port", 25021, "its port")
	service := flag.String("service", "", "the service to ask about")
	timeout := flag.Duration("timeout", time.Second, "for connection and answer together")
	flag.Parse()

	result, message, err := grpc.New().Probe(*host, *service, *port, *timeout, grpc.ProbeOptions{})
	if err != nil {
		message = err.Error()
	}
	fmt.Printf("%s: %s\n", result, message)
}
