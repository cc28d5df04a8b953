/* A broker's ExHook calls in quantity: gRPC over HTTP/2 on nghttp2, one thread, many connections and streams.

     load_generator PORT PATH BODIES CONNECTIONS STREAMS CALLS RATE FIRST

   BODIES is a file of requests, each behind its length in four bytes, big end first; call n sends body FIRST + n, and the
   first one again after the last. With RATE 0 every connection keeps STREAMS calls open. Else calls are due at random
   moments (a Poisson process of RATE calls a second, as of many devices that know nothing of each other), and one that
   finds every stream taken waits; its latency counts from when it was due.

   Ends when CALLS answers are in, and prints one line of JSON: seconds, latency in µs, answers by kind. An answer is read
   to its gRPC status. Exits with 1 where a connection fails or no answer comes for ten seconds. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <nghttp2/nghttp2.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define FIELD(name, value)                                                                                             \
  {                                                                                                                    \
    (uint8_t *)name, (uint8_t *)value, sizeof(name) - 1, sizeof(value) - 1,                                            \
        NGHTTP2_NV_FLAG_NO_COPY_NAME | NGHTTP2_NV_FLAG_NO_COPY_VALUE                                                   \
  }

enum {
  READ_BYTES = 262144,
  WRITE_BYTES = 1 << 20,
  ANSWER_BYTES = 2048,
  PREFIX_BYTES = 5, /* gRPC's, before each message */
  SILENCE_MS = 10000,
  TICK_NS = 100000, /* how often calls that are due are looked for */
  FINE = 64,        /* steps of the histogram per power of two */
  STEPS = FINE * 40
};

enum kind { IGNORED, UPGRADE, NO_UPGRADE, EMPTY, OTHER, FAILED, KINDS };
static const char *const KIND_NAMES[KINDS] = {"ignore", "upgrade", "no_upgrade", "empty", "other", "failed"};

struct call {
  struct call *next; /* free one */
  const uint8_t *body;
  uint32_t body_bytes, sent_bytes, answer_bytes;
  int status;
  uint64_t due_ns;
  uint8_t answer[ANSWER_BYTES];
};

struct connection {
  int fd;
  nghttp2_session *session;
  struct call *free_calls;
  uint8_t *out; /* what the socket did not take yet */
  size_t out_bytes, out_at;
  int is_writable_wanted;
};

static const uint8_t *bodies, *bodies_end;
static uint64_t *offsets, body_count, next_body;
static uint64_t calls_wanted, calls_begun, calls_done, answers[KINDS], histogram[STEPS], slowest_ns;
static double rate;
static uint64_t next_due_ns;
static struct connection *connections;
static int connection_count, next_connection, epoll;
static char authority[32];
static nghttp2_nv head[9];

static void die(const char *what) {
  perror(what);
  exit(1);
}

static uint64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* ---- latencies: exact to 1/64, from 1 ns up */

static unsigned step_of(uint64_t ns) {
  unsigned power = ns < FINE ? 0 : 63u - (unsigned)__builtin_clzll(ns) - 5u;
  unsigned step = power * (FINE / 2) + (unsigned)(ns >> power);
  return step < STEPS ? step : STEPS - 1;
}

static double step_ns(unsigned step) {
  unsigned power = step < FINE ? 0 : step / (FINE / 2) - 1;
  return (double)((uint64_t)(step - power * (FINE / 2)) << power);
}

static double percentile_us(double share) {
  uint64_t wanted = (uint64_t)(share * (double)calls_done), seen = 0;
  for (unsigned step = 0; step < STEPS; step++) {
    if ((seen += histogram[step]) > wanted) {
      return step_ns(step + 1) / 1000;
    }
  }
  return (double)slowest_ns / 1000;
}

/* ---- one call */

static ssize_t read_body(nghttp2_session *session, int32_t stream_id, uint8_t *room, size_t room_bytes, uint32_t *flags,
                         nghttp2_data_source *source, void *user_data) {
  struct call *call = source->ptr;
  size_t at = 0;
  (void)session, (void)stream_id, (void)user_data;
  while (at < room_bytes && call->sent_bytes < call->body_bytes + PREFIX_BYTES) {
    if (call->sent_bytes < PREFIX_BYTES) {
      room[at++] = call->sent_bytes == 0 ? 0 : (uint8_t)(call->body_bytes >> 8 * (PREFIX_BYTES - 1 - call->sent_bytes));
      call->sent_bytes++;
      continue;
    }
    size_t left = call->body_bytes + PREFIX_BYTES - call->sent_bytes;
    size_t piece = left < room_bytes - at ? left : room_bytes - at;
    memcpy(room + at, call->body + call->sent_bytes - PREFIX_BYTES, piece);
    at += piece;
    call->sent_bytes += (uint32_t)piece;
  }
  if (call->sent_bytes == call->body_bytes + PREFIX_BYTES) {
    *flags |= NGHTTP2_DATA_FLAG_EOF;
  }
  return (ssize_t)at;
}

static int begin_call(struct connection *connection, uint64_t due_ns) {
  struct call *call = connection->free_calls;
  const uint8_t *at = bodies + offsets[next_body];
  nghttp2_data_provider provider = {{0}, read_body};
  connection->free_calls = call->next;
  call->body_bytes = (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
  call->body = at + 4;
  call->sent_bytes = call->answer_bytes = 0;
  call->status = -1;
  call->due_ns = due_ns;
  next_body = next_body + 1 == body_count ? 0 : next_body + 1;
  calls_begun++;
  provider.source.ptr = call;
  return nghttp2_submit_request(connection->session, NULL, head, sizeof(head) / sizeof(*head), &provider, call) < 0 ? -1
                                                                                                                   : 0;
}

static enum kind kind_of(const struct call *call) {
  static const char yes[] = "\"upgrade\":true", no[] = "\"upgrade\":false";
  const uint8_t *message = call->answer + PREFIX_BYTES;
  size_t bytes = call->answer_bytes - PREFIX_BYTES;
  if (call->status != 0 || call->answer_bytes < PREFIX_BYTES) {
    return FAILED;
  }
  if (bytes == 2 && message[0] == 8 && message[1] == 1) {
    return IGNORED;
  }
  if (bytes == 0) {
    return EMPTY;
  }
  if (memmem(message, bytes, no, sizeof(no) - 1)) {
    return NO_UPGRADE;
  }
  return memmem(message, bytes, yes, sizeof(yes) - 1) ? UPGRADE : OTHER;
}

static int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name, size_t name_bytes,
                     const uint8_t *value, size_t value_bytes, uint8_t flags, void *user_data) {
  (void)flags, (void)user_data;
  if (name_bytes == 11 && memcmp(name, "grpc-status", 11) == 0) {
    struct call *call = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
    if (call) {
      call->status = value_bytes == 1 ? value[0] - '0' : 99;
    }
  }
  return 0;
}

static int on_data(nghttp2_session *session, uint8_t flags, int32_t stream_id, const uint8_t *data, size_t bytes,
                   void *user_data) {
  struct call *call = nghttp2_session_get_stream_user_data(session, stream_id);
  (void)flags, (void)user_data;
  if (call) {
    size_t room = ANSWER_BYTES - call->answer_bytes;
    memcpy(call->answer + call->answer_bytes, data, bytes < room ? bytes : room);
    call->answer_bytes += (uint32_t)(bytes < room ? bytes : room);
  }
  return 0;
}

static int on_close(nghttp2_session *session, int32_t stream_id, uint32_t error, void *user_data) {
  struct connection *connection = user_data;
  struct call *call = nghttp2_session_get_stream_user_data(session, stream_id);
  if (call) {
    uint64_t took = now_ns() - call->due_ns;
    histogram[step_of(took)]++;
    slowest_ns = took > slowest_ns ? took : slowest_ns;
    answers[error ? FAILED : kind_of(call)]++;
    calls_done++;
    call->next = connection->free_calls;
    connection->free_calls = call;
  }
  return 0;
}

/* ---- connections */

static void open_connection(struct connection *connection, int port, int streams) {
  static nghttp2_session_callbacks *callbacks;
  static const nghttp2_settings_entry settings[] = {{NGHTTP2_SETTINGS_ENABLE_PUSH, 0},
                                                    {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, 8000000}};
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  struct epoll_event event = {.events = EPOLLIN, .data.ptr = connection};
  int on = 1;
  if (!callbacks) {
    nghttp2_session_callbacks_new(&callbacks);
    nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data);
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_close);
  }
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  connection->fd = socket(AF_INET, SOCK_STREAM, 0);
  connection->out = malloc(WRITE_BYTES);
  if (!connection->out || connect(connection->fd, (struct sockaddr *)&address, sizeof(address)) ||
      fcntl(connection->fd, F_SETFL, O_NONBLOCK)) {
    die("connect");
  }
  setsockopt(connection->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  if (nghttp2_session_client_new(&connection->session, callbacks, connection) ||
      nghttp2_submit_settings(connection->session, NGHTTP2_FLAG_NONE, settings, 2) ||
      nghttp2_session_set_local_window_size(connection->session, NGHTTP2_FLAG_NONE, 0, 8000000)) {
    die("nghttp2");
  }
  for (int index = 0; index < streams; index++) {
    struct call *call = malloc(sizeof(*call));
    if (!call) {
      die("malloc");
    }
    call->next = connection->free_calls;
    connection->free_calls = call;
  }
  epoll_ctl(epoll, EPOLL_CTL_ADD, connection->fd, &event);
}

static void want_writable(struct connection *connection, int wanted) {
  if (wanted != connection->is_writable_wanted) {
    struct epoll_event event = {.events = EPOLLIN | (wanted ? EPOLLOUT : 0u), .data.ptr = connection};
    epoll_ctl(epoll, EPOLL_CTL_MOD, connection->fd, &event);
    connection->is_writable_wanted = wanted;
  }
}

/* Writes all that may be sent, in as few writes as possible. */
static void write_out(struct connection *connection) {
  for (;;) {
    const uint8_t *frame;
    ssize_t bytes = 0;
    while (connection->out_bytes < WRITE_BYTES - 32768 &&
           (bytes = nghttp2_session_mem_send(connection->session, &frame)) > 0) {
      memcpy(connection->out + connection->out_bytes, frame, (size_t)bytes);
      connection->out_bytes += (size_t)bytes;
    }
    if (bytes < 0) {
      die("nghttp2_session_mem_send");
    }
    if (connection->out_at == connection->out_bytes) {
      want_writable(connection, 0);
      return;
    }
    bytes = write(connection->fd, connection->out + connection->out_at, connection->out_bytes - connection->out_at);
    if (bytes < 0 && errno == EAGAIN) {
      want_writable(connection, 1);
      return;
    }
    if (bytes < 0) {
      die("write");
    }
    connection->out_at += (size_t)bytes;
    if (connection->out_at == connection->out_bytes) {
      connection->out_at = connection->out_bytes = 0;
    }
  }
}

static void read_in(struct connection *connection) {
  static uint8_t in[READ_BYTES];
  ssize_t bytes = read(connection->fd, in, sizeof(in));
  if (bytes < 0 && errno == EAGAIN) {
    return;
  }
  if (bytes == 0) {
    fprintf(stderr, "load_generator: the server closed a connection\n");
    exit(1);
  }
  if (bytes < 0 || nghttp2_session_mem_recv(connection->session, in, (size_t)bytes) < 0) {
    die("read");
  }
}

/* ---- when calls begin */

static void fill(struct connection *connection) {
  uint64_t now = now_ns();
  while (connection->free_calls && calls_begun < calls_wanted) {
    if (begin_call(connection, now) < 0) {
      die("nghttp2_submit_request");
    }
  }
}

static double random_share(void) {
  static uint64_t state = 88172645463325252u;
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return ((double)(state >> 11) + 1) / 9007199254740993.0;
}

/* Begins the calls that are due, each on the next connection that has a stream for it. */
static void begin_due(void) {
  uint64_t now = now_ns();
  while (calls_begun < calls_wanted && next_due_ns <= now) {
    int tried = 0;
    while (!connections[next_connection].free_calls) {
      next_connection = (next_connection + 1) % connection_count;
      if (++tried == connection_count) {
        return;
      }
    }
    if (begin_call(&connections[next_connection], next_due_ns) < 0) {
      die("nghttp2_submit_request");
    }
    next_connection = (next_connection + 1) % connection_count;
    next_due_ns += (uint64_t)(-log(random_share()) * 1e9 / rate);
  }
}

static int start_clock(void) {
  struct itimerspec every = {{0, TICK_NS}, {0, TICK_NS}};
  struct epoll_event event = {.events = EPOLLIN};
  int clock = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
  if (clock < 0 || timerfd_settime(clock, 0, &every, NULL) || epoll_ctl(epoll, EPOLL_CTL_ADD, clock, &event)) {
    die("timerfd");
  }
  return clock;
}

static void run(void) {
  struct epoll_event events[256];
  int clock = rate > 0 ? start_clock() : -1;
  next_due_ns = now_ns();
  for (int index = 0; index < connection_count; index++) {
    if (rate <= 0) {
      fill(&connections[index]);
    }
    write_out(&connections[index]);
  }
  uint64_t heard_ns = now_ns();
  while (calls_done < calls_wanted) {
    uint64_t done_before = calls_done;
    int ready = epoll_wait(epoll, events, 256, SILENCE_MS);
    for (int index = 0; index < ready; index++) {
      struct connection *connection = events[index].data.ptr;
      if (!connection) {
        uint64_t ticks;
        if (read(clock, &ticks, sizeof(ticks)) < 0 && errno != EAGAIN) {
          die("timerfd");
        }
        continue;
      }
      if (events[index].events & (EPOLLIN | EPOLLERR | EPOLLHUP)) {
        read_in(connection);
      }
      if (rate <= 0) {
        fill(connection);
        write_out(connection);
      }
    }
    if (rate > 0) {
      begin_due();
      for (int index = 0; index < connection_count; index++) {
        if (connections[index].out_bytes || nghttp2_session_want_write(connections[index].session)) {
          write_out(&connections[index]);
        }
      }
    }
    if (calls_done != done_before || calls_begun == calls_done) {
      heard_ns = now_ns();
    } else if (now_ns() - heard_ns > (uint64_t)SILENCE_MS * 1000000) {
      fprintf(stderr, "load_generator: no answer for %d ms\n", SILENCE_MS);
      exit(1);
    }
  }
}

static void load_bodies(const char *path) {
  struct stat facts;
  int fd = open(path, O_RDONLY);
  if (fd < 0 || fstat(fd, &facts) || facts.st_size < 4) {
    die(path);
  }
  bodies = mmap(NULL, (size_t)facts.st_size, PROT_READ, MAP_PRIVATE | MAP_POPULATE, fd, 0);
  offsets = malloc(((size_t)facts.st_size / 4 + 1) * sizeof(*offsets));
  if (bodies == MAP_FAILED || !offsets) {
    die(path);
  }
  bodies_end = bodies + facts.st_size;
  for (const uint8_t *at = bodies; at < bodies_end; body_count++) {
    offsets[body_count] = (uint64_t)(at - bodies);
    at += 4 + ((uint64_t)at[0] << 24 | (uint64_t)at[1] << 16 | (uint64_t)at[2] << 8 | at[3]);
  }
}

int main(int argc, char **argv) {
  if (argc != 9) {
    fprintf(stderr, "usage: load_generator PORT PATH BODIES CONNECTIONS STREAMS CALLS RATE FIRST\n");
    return 2;
  }
  int port = atoi(argv[1]), streams = atoi(argv[5]);
  snprintf(authority, sizeof(authority), "127.0.0.1:%d", port);
  nghttp2_nv fields[] = {FIELD(":method", "POST"),
                         FIELD(":scheme", "http"),
                         FIELD(":path", ""),
                         FIELD(":authority", ""),
                         FIELD("content-type", "application/grpc+proto"),
                         FIELD("user-agent", "grpc-erlang/0.6.12"),
                         FIELD("grpc-encoding", "identity"),
                         FIELD("te", "trailers"),
                         FIELD("grpc-timeout", "5S")};
  memcpy(head, fields, sizeof(head));
  head[2].value = (uint8_t *)argv[2], head[2].valuelen = strlen(argv[2]);
  head[3].value = (uint8_t *)authority, head[3].valuelen = strlen(authority);
  load_bodies(argv[3]);
  connection_count = atoi(argv[4]);
  calls_wanted = strtoull(argv[6], NULL, 10);
  rate = atof(argv[7]);
  next_body = strtoull(argv[8], NULL, 10) % body_count;
  epoll = epoll_create1(0);
  connections = calloc((size_t)connection_count, sizeof(*connections));
  if (!connections) {
    die("calloc");
  }
  for (int index = 0; index < connection_count; index++) {
    open_connection(&connections[index], port, streams);
  }
  uint64_t started = now_ns();
  run();
  printf("{\"calls\": %llu, \"seconds\": %.6f", (unsigned long long)calls_done, (double)(now_ns() - started) / 1e9);
  printf(", \"p50_us\": %.1f, \"p90_us\": %.1f, \"p99_us\": %.1f, \"p999_us\": %.1f, \"max_us\": %.1f", percentile_us(.5),
         percentile_us(.9), percentile_us(.99), percentile_us(.999), (double)slowest_ns / 1000);
  for (int kind = 0; kind < KINDS; kind++) {
    printf(", \"%s\": %llu", KIND_NAMES[kind], (unsigned long long)answers[kind]);
  }
  printf("}\n");
  return 0;
}
