// What an ExHook answer costs on Go's gRPC: another yardstick of exhook_call. One constant answer to every
// OnMessagePublish; requests are not decoded, so it does less than a hook in Go would.
//
//	go_server PORT ANSWER_HEX    serve on 127.0.0.1:PORT (0: the system's choice) and print the port
package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"log"
	"net"
	"os"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
)

// bytesCodec leaves messages as they are.
type bytesCodec struct{}

func (bytesCodec) Name() string { return "proto" }

func (bytesCodec) Marshal(message interface{}) ([]byte, error) { return *message.(*[]byte), nil }

func (bytesCodec) Unmarshal(data []byte, message interface{}) error {
	*message.(*[]byte) = data
	return nil
}

func main() {
	if len(os.Args) != 3 {
		log.Fatal("usage: go_server PORT ANSWER_HEX")
	}
	answer, err := hex.DecodeString(os.Args[2])
	if err != nil {
		log.Fatal(err)
	}
	encoding.RegisterCodec(bytesCodec{})
	publish := func(_ interface{}, _ context.Context, decode func(interface{}) error, _ grpc.UnaryServerInterceptor) (interface{}, error) {
		var request []byte
		if err := decode(&request); err != nil {
			return nil, err
		}
		return &answer, nil
	}
	server := grpc.NewServer()
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: "emqx.exhook.v2.HookProvider",
		HandlerType: (*interface{})(nil),
		Methods:     []grpc.MethodDesc{{MethodName: "OnMessagePublish", Handler: publish}},
	}, struct{}{})
	listener, err := net.Listen("tcp", "127.0.0.1:"+os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	log.Fatal(server.Serve(listener))
}
