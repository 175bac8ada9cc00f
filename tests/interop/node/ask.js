// Asks a gRPC health server once and prints the status, or the name of the error:
//   node ask.js Check|Watch HOST:PORT [SERVICE]
'use strict';

const grpc = require('@grpc/grpc-js');
const health = require('grpc-health-check'); // brings health.proto

const [method, address, service = ''] = process.argv.slice(2);
const Health = grpc.makeGenericClientConstructor(health.service, 'Health');
const client = new Health(address, grpc.credentials.createInsecure());
const options = { deadline: Date.now() + 5000 };
const failed = (error) => console.log(grpc.status[error.code]);

if (method === 'Check') {
  client.Check({ service }, options, (error, reply) => {
    if (error) failed(error);
    else console.log(reply.status);
    client.close();
  });
} else {
  const watch = client.Watch({ service }, options);
  watch.on('error', failed);
  watch.once('data', (reply) => {
    console.log(reply.status);
    watch.off('error', failed).on('error', () => client.close());
    watch.cancel();
  });
}
