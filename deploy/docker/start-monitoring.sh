#!/usr/bin/env bash
# Starts, shows, ends and cleans the monitoring stack of docker-compose.yml.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
project=nexent-monitoring

usage() {
    cat <<'TEXT'
Usage: start-monitoring.sh COMMAND

  up --pid N | --exe PATH    build and start the observer for these processes of the host, and Prometheus, Jaeger, Grafana;
                             both may be given several times. NEXENT_OBSERVER_PID and NEXENT_OBSERVER_EXE do the same.
  status                     what runs, and whether it answers
  logs [SERVICE]             the last lines of what the services say
  down                       end everything, keep the data
  clean jaeger               drop all traces
  clean prometheus           drop all metrics
  clean grafana              drop users, passwords and changes to dashboards
TEXT
}

fail() {
    echo "start-monitoring.sh: $1" >&2
    exit "${2:-1}"
}

usage_error() {
    echo "start-monitoring.sh: $1" >&2
    usage >&2
    exit 64
}

# "docker compose", or the older "docker-compose".
compose() {
    if docker compose version >/dev/null 2>&1; then
        docker compose --project-name "$project" --file "$here/docker-compose.yml" "$@"
    elif command -v docker-compose >/dev/null 2>&1; then
        docker-compose --project-name "$project" --file "$here/docker-compose.yml" "$@"
    else
        fail "neither 'docker compose' nor 'docker-compose' works; install Docker's compose plugin"
    fi
}

need_docker() {
    command -v docker >/dev/null 2>&1 || fail "docker is not installed"
    docker info >/dev/null 2>&1 || fail "the Docker daemon does not answer; start it, or run this as a user who may use it"
}

# Adds $2 to the list in the variable $1, separated by $3.
add() {
    local -n list="$1"
    list="${list:+$list$3}$2"
    export "${1?}"
}

targets() {
    while (($#)); do
        case "$1" in
        --pid)
            [[ "${2:-}" =~ ^[0-9]+$ ]] || usage_error "--pid wants a process number"
            add NEXENT_OBSERVER_PID "$2" ,
            shift 2
            ;;
        --exe)
            [[ "${2:-}" == /* ]] || usage_error "--exe wants an absolute path"
            # The observer sees the host's files below the root of the host's first process.
            add NEXENT_OBSERVER_EXE "/proc/1/root$2" :
            shift 2
            ;;
        *) usage_error "what is $1?" ;;
        esac
    done
    [[ -n "${NEXENT_OBSERVER_PID:-}${NEXENT_OBSERVER_EXE:-}" ]] ||
        usage_error "name what to observe: --pid N or --exe PATH"
}

# Says whether URL $2 answers within $3 seconds.
answers() {
    local until=$((SECONDS + $3))
    while ! curl --silent --fail --max-time 2 --output /dev/null "$2"; do
        if ((SECONDS >= until)); then
            echo "  no answer  $1  $2"
            return 1
        fi
        sleep 1
    done
    echo "  answers    $1  $2"
}

check() {
    local wrong=0
    answers "observer  " "http://127.0.0.1:${PROMETHEUS_PORT:-9464}/healthz" "$1" || wrong=1
    answers "Prometheus" http://127.0.0.1:9090/-/ready "$1" || wrong=1
    answers "Jaeger    " http://127.0.0.1:16686/ "$1" || wrong=1
    answers "Grafana   " http://127.0.0.1:3005/api/health "$1" || wrong=1
    return "$wrong"
}

up() {
    targets "$@"
    need_docker
    compose up --detach --build
    check 60 || fail "not all of it answers; see: $0 status, and $0 logs"
    cat <<TEXT
Grafana     http://localhost:3005    admin / ${GF_SECURITY_ADMIN_PASSWORD:-admin}, folder Nexent
Jaeger      http://localhost:16686
Prometheus  http://localhost:9090
Metrics     http://localhost:${PROMETHEUS_PORT:-9464}/metrics
TEXT
}

status() {
    need_docker
    compose ps
    check 0
}

# Removes a service's container and volume and starts it again, if it ran.
renew() {
    local running
    running="$(compose ps --quiet "$1")"
    compose rm --stop --force "$1"
    if [[ -n "${2:-}" ]] && docker volume inspect "$2" >/dev/null 2>&1; then
        docker volume rm "$2"
    fi
    if [[ -n "$running" ]]; then
        compose up --detach --no-deps "$1"
    fi
}

clean() {
    need_docker
    case "${1:-}" in
    jaeger) renew jaeger ;; # in memory
    prometheus) renew prometheus "${project}_prometheus-data" ;;
    grafana) renew grafana "${project}_grafana-data" ;;
    *) usage_error "clean what: jaeger, prometheus or grafana?" ;;
    esac
}

case "${1:-}" in
up) up "${@:2}" ;;
status) status ;;
logs)
    need_docker
    compose logs --tail 100 "${@:2}"
    ;;
down)
    need_docker
    compose down
    ;;
clean) clean "${2:-}" ;;
-h | --help | help) usage ;;
*) usage_error "name a command" ;;
esac
