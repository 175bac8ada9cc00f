// An agent behind Envoy's readiness listener, as pilot-agent is: it answers 200 on
// /healthz/ready.
package main

import (
	"flag"
	"log"
	"net/http"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:15020", "address to serve on")
	flag.Parse()

	http.HandleFunc("/healthz/ready", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusOK)
	})
	log.Fatal(http.ListenAndServe(*listen, nil))
}
