// Clienthealth is a gRPC channel with client-side health checking. It prints each state of the
// channel, a line each, from the first until it is ended or its time is over.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	_ "google.golang.org/grpc/health" // without it the service config below does nothing
)

func main() {
	addr := flag.String("addr", "127.0.0.1:25021", "host:port of the server")
	service := flag.String("service", "", "the service whose health is the channel's")
	ca := flag.String("ca", "", "PEM file with the authority of the server, localhost; unset: no TLS")
	duration := flag.Duration("duration", time.Minute, "how long to go on")
	flag.Parse()

	// Of the balancers in grpc-go, round_robin is the one that asks for health.
	config := fmt.Sprintf(
		`{"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": %q}}`,
		*service,
	)
	transport := insecure.NewCredentials()
	if *ca != "" {
		var err error
		if transport, err = credentials.NewClientTLSFromFile(*ca, "localhost"); err != nil {
			log.Fatal(err)
		}
	}
	channel, err := grpc.NewClient(
		"passthrough:///"+*addr,
		grpc.WithTransportCredentials(transport),
		grpc.WithDefaultServiceConfig(config),
	)
	if err != nil {
		log.Fatal(err)
	}
	defer channel.Close()

	ctx, cancel := context.WithTimeout(context.Background(), *duration)
	defer cancel()
	channel.Connect()
	for state := channel.GetState(); ; state = channel.GetState() {
		fmt.Println(state)
		if !channel.WaitForStateChange(ctx, state) {
			return
		}
	}
}
