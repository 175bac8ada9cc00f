# Both target groups and the listener rules that send requests to them. The pods are registered by
# deploy/aws/targetgroupbinding.yaml. On an IPv6 cluster add `ip_address_type = "ipv6"` to both groups
# and `ipAddressType: ipv6` to both bindings; the load balancer must be dualstack.
terraform {
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.0"
    }
  }
}

variable "vpc_id" {
  description = "VPC of the cluster"
  type        = string
}

variable "https_listener_arn" {
  description = "HTTPS listener of your ALB: a gRPC target group accepts no HTTP listener"
  type        = string
}

variable "grpc_host" {
  description = "Host name of your gRPC services"
  type        = string
}

variable "grpc_paths" {
  description = "Your packages: the path of a gRPC call is /package.Service/Method"
  type        = list(string)
  default     = ["/your.package.*"]
}

variable "load_balancer_security_group_id" {
  description = "Security group of the ALB"
  type        = string
}

variable "pod_security_group_id" {
  description = "Security group of the gateway's pods: the cluster's, unless you use one per pod"
  type        = string
}

resource "aws_lb_target_group" "grpc" {
  name                 = "istio-ingress-grpc"
  vpc_id               = var.vpc_id
  target_type          = "ip"
  port                 = 80
  protocol             = "HTTP"
  protocol_version     = "GRPC"
  deregistration_delay = 60

  health_check {
    port                = "25021"
    protocol            = "HTTP"
    path                = "/grpc.health.v1.Health/Check"
    matcher             = "0"
    interval            = 10
    timeout             = 5
    healthy_threshold   = 2
    unhealthy_threshold = 2
  }
}

resource "aws_lb_target_group" "http" {
  name                 = "istio-ingress-http"
  vpc_id               = var.vpc_id
  target_type          = "ip"
  port                 = 80
  protocol             = "HTTP"
  protocol_version     = "HTTP1"
  deregistration_delay = 60

  health_check {
    port                = "15021"
    protocol            = "HTTP"
    path                = "/healthz/ready"
    matcher             = "200"
    interval            = 10
    timeout             = 5
    healthy_threshold   = 2
    unhealthy_threshold = 2
  }
}

# The smaller priority is matched first.
resource "aws_lb_listener_rule" "grpc" {
  listener_arn = var.https_listener_arn
  priority     = 1

  action {
    type             = "forward"
    target_group_arn = aws_lb_target_group.grpc.arn
  }

  condition {
    host_header {
      values = [var.grpc_host]
    }
  }

  condition {
    path_pattern {
      values = var.grpc_paths
    }
  }
}

resource "aws_lb_listener_rule" "http" {
  listener_arn = var.https_listener_arn
  priority     = 2

  action {
    type             = "forward"
    target_group_arn = aws_lb_target_group.http.arn
  }

  condition {
    path_pattern {
      values = ["/*"]
    }
  }
}

# Requests and both health checks. If the TargetGroupBindings have `networking`, the controller manages
# these rules: leave this resource out.
resource "aws_vpc_security_group_ingress_rule" "gateway" {
  for_each = toset(["80", "15021", "25021"])

  security_group_id            = var.pod_security_group_id
  referenced_security_group_id = var.load_balancer_security_group_id
  ip_protocol                  = "tcp"
  from_port                    = tonumber(each.value)
  to_port                      = tonumber(each.value)
}

output "grpc_target_group_arn" {
  value = aws_lb_target_group.grpc.arn
}

output "http_target_group_arn" {
  value = aws_lb_target_group.http.arn
}
