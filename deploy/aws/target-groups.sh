#!/bin/sh
# Creates both target groups with the AWS CLI: VPC_ID=vpc-… deploy/aws/target-groups.sh
# Prints their ARNs, for targetgroupbinding.yaml. Listener rules are yours: gRPC first. On an IPv6
# cluster add `--ip-address-type ipv6` to both, and `ipAddressType: ipv6` to both bindings.
set -eu

aws elbv2 create-target-group \
    --name istio-ingress-grpc \
    --vpc-id "$VPC_ID" \
    --target-type ip \
    --port 80 \
    --protocol HTTP \
    --protocol-version GRPC \
    --health-check-port 25021 \
    --health-check-protocol HTTP \
    --health-check-path /grpc.health.v1.Health/Check \
    --matcher GrpcCode=0 \
    --health-check-interval-seconds 10 \
    --health-check-timeout-seconds 5 \
    --healthy-threshold-count 2 \
    --unhealthy-threshold-count 2 \
    --query 'TargetGroups[0].TargetGroupArn' --output text

aws elbv2 create-target-group \
    --name istio-ingress-http \
    --vpc-id "$VPC_ID" \
    --target-type ip \
    --port 80 \
    --protocol HTTP \
    --protocol-version HTTP1 \
    --health-check-port 15021 \
    --health-check-protocol HTTP \
    --health-check-path /healthz/ready \
    --matcher HttpCode=200 \
    --health-check-interval-seconds 10 \
    --health-check-timeout-seconds 5 \
    --healthy-threshold-count 2 \
    --unhealthy-threshold-count 2 \
    --query 'TargetGroups[0].TargetGroupArn' --output text

for name in istio-ingress-grpc istio-ingress-http; do
    arn=$(aws elbv2 describe-target-groups --names "$name" \
        --query 'TargetGroups[0].TargetGroupArn' --output text)
    aws elbv2 modify-target-group-attributes \
        --target-group-arn "$arn" \
        --attributes Key=deregistration_delay.timeout_seconds,Value=60 \
        --output text > /dev/null
done
