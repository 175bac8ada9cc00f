// Kubelet probes a gRPC health server with the kubelet's own code, once, and prints its verdict.
package main

import (
	"flag"
	"fmt"
	"time"

	"k8s.io/kubernetes/pkg/probe/grpc"
)

func main() {
	host := flag.String("host", "127.0.0.1", "host to probe")
	port := flag.Int("port", 25021, "its port")
	service := flag.String("service", "", "the service to ask about")
	timeout := flag.Duration("timeout", time.Second, "for connection and answer together")
	tls := flag.Bool("tls", false, "with TLS; the certificate is not verified")
	flag.Parse()

	options := grpc.ProbeOptions{UseTLS: *tls}
	result, message, err := grpc.New().Probe(*host, *service, *port, *timeout, options)
	if err != nil {
		message = err.Error()
	}
	fmt.Printf("%s: %s\n", result, message)
}
