/* A small web server: one process, no file system, at most MAX_CLIENTS connections, ten seconds each.
 *     GET  /                         the report
 *     GET  /disk/NAME                marker at the start of a disk (name or serial); also /read?disk=NAME
 *     PUT  /disk/NAME                write it (body);                               also /write?disk=NAME&data=TEXT
 *     POST /poweroff, /reboot, /crash */
#define _GNU_SOURCE
#include "guest.h"

#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <fcntl.h>
#include <time.h>
#include <unistd.h>

#define MAX_CLIENTS 64
#define MAX_REQUEST (16 * 1024)
#define IDLE_SECONDS 10

struct client { int fd; time_t since; size_t used, sent; char request[MAX_REQUEST + 1]; struct out answer; };

static struct client *clients[MAX_CLIENTS];
static unsigned long *counter;

static time_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec;
}

static void drop(int i)
{
    close(clients[i]->fd);
    free(clients[i]->answer.data);
    free(clients[i]);
    clients[i] = NULL;
}

static void answer(struct client *c, const char *status, const char *type, const char *body, size_t length)
{
    out_format(&c->answer, "HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n",
        status, type, length);
    out_bytes(&c->answer, body, length);
}

static void answer_text(struct client *c, const char *status, const char *text)
{
    answer(c, status, "text/plain", text, strlen(text));
}

static int hex(int c)
{
    return c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : -1;
}

static void unescape(char *text)
{
    char *to = text;
    for (; *text; text++) {
        if (*text == '%' && hex(text[1]) >= 0 && hex(text[2]) >= 0) {
            *to++ = (char)(hex(text[1]) * 16 + hex(text[2]));
            text += 2;
        } else {
            *to++ = *text == '+' ? ' ' : *text;
        }
    }
    *to = 0;
}

static void answer_errno(struct client *c, int error)
{
    char text[128];
    snprintf(text, sizeof text, "%s\n", strerror(error));
    answer_text(c, error == ENODEV || error == ENOENT ? "404 Not Found" : error == EEXIST || error == EROFS || error == EACCES || error == EPERM
        ? "409 Conflict" : error == EINVAL || error == EFBIG ? "400 Bad Request" : "500 Internal Server Error", text);
}

static void do_disk_read(struct client *c, const char *name)
{
    char data[4096];
    int length = disk_read(name, data, sizeof data);
    if (length < 0)
        answer_errno(c, -length);
    else
        answer(c, "200 OK", "application/octet-stream", data, (size_t)length);
}

static void do_disk_write(struct client *c, const char *name, const char *data, size_t length)
{
    int error = disk_write(name, data, length);
    if (error < 0)
        answer_errno(c, -error);
    else
        answer_text(c, "200 OK", "written\n");
}

/* disk= and data= of a query string, unescaped in place. */
static void query(char *text, const char **disk, const char **data)
{
    char *pair;
    while (text && (pair = strsep(&text, "&"))) {
        char *key = strsep(&pair, "=");
        if (!pair)
            continue;
        unescape(pair);
        if (!strcmp(key, "disk"))
            *disk = pair;
        else if (!strcmp(key, "data"))
            *data = pair;
    }
}

static void power(struct client *c, int signal_number, const char *text)
{
    answer_text(c, "200 OK", text);
    kill(1, signal_number); /* PID 1 waits a moment before it acts, so that this answer is still sent */
}

static void route(struct client *c, const char *method, char *target, const char *body, size_t length)
{
    const char *disk = "", *data = "";
    char *path = strsep(&target, "?");
    int writes = !strcmp(method, "PUT") || !strcmp(method, "POST");
    query(target, &disk, &data);
    unescape(path);
    if (!strncmp(path, "/disk/", 6) && writes)
        do_disk_write(c, path + 6, body, length);
    else if (!strncmp(path, "/disk/", 6))
        do_disk_read(c, path + 6);
    else if (!strcmp(path, "/read"))
        do_disk_read(c, disk);
    else if (!strcmp(path, "/write"))
        do_disk_write(c, disk, data, strlen(data));
    else if (!strcmp(path, "/poweroff") && writes)
        power(c, SIGUSR2, "powering off\n");
    else if (!strcmp(path, "/reboot") && writes)
        power(c, SIGTERM, "rebooting\n");
    else if (!strcmp(path, "/crash") && writes)
        write_text("/proc/sysrq-trigger", "c", 0);
    else if (strcmp(path, "/"))
        answer_text(c, "404 Not Found", "no such path\n");
    else {
        struct out json = {0};
        report(&json, *counter);
        answer(c, "200 OK", "application/json", json.data ? json.data : "", json.length);
        free(json.data);
    }
}

/* True when the request is complete, and was answered. */
static int handle(struct client *c)
{
    c->request[c->used] = 0;
    char *end = strstr(c->request, "\r\n\r\n");
    if (!end) {
        if (c->used < MAX_REQUEST)
            return 0;
        answer_text(c, "431 Request Header Fields Too Large", "too large\n");
        return 1;
    }
    char *body = end + 4, *field = strcasestr(c->request, "\r\nContent-Length:");
    size_t have = c->used - (size_t)(body - c->request);
    unsigned long length = field && field < end ? strtoul(field + 17, NULL, 10) : 0;
    if (length > MAX_REQUEST - (size_t)(body - c->request)) {
        answer_text(c, "413 Content Too Large", "too large\n");
        return 1;
    }
    if (have < length)
        return 0;
    *end = 0;
    char *line = c->request, *method = strsep(&line, " "), *target = strsep(&line, " \r\n");
    if (!target || target[0] != '/')
        answer_text(c, "400 Bad Request", "bad request\n");
    else
        route(c, method, target, body, length);
    return 1;
}

static void serve_client(int i, short events)
{
    struct client *c = clients[i];
    if (!c->answer.length && events & (POLLIN | POLLHUP | POLLERR)) {
        ssize_t got = recv(c->fd, c->request + c->used, MAX_REQUEST - c->used, MSG_DONTWAIT);
        if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR)) {
            drop(i);
            return;
        }
        if (got > 0) {
            c->used += (size_t)got;
            handle(c);
        }
    }
    if (c->answer.length) {
        ssize_t put = send(c->fd, c->answer.data + c->sent, c->answer.length - c->sent, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (put > 0)
            c->sent += (size_t)put;
        if (c->sent == c->answer.length || (put < 0 && errno != EAGAIN && errno != EINTR)) {
            shutdown(c->fd, SHUT_WR);
            drop(i);
        }
    }
}

static void accept_client(int listener)
{
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0)
        return;
    for (int i = 0; i < MAX_CLIENTS; i++) {
        if (clients[i])
            continue;
        if (!(clients[i] = calloc(1, sizeof **clients)))
            break;
        clients[i]->fd = fd;
        clients[i]->since = now();
        return;
    }
    close(fd);
}

static int listen_on(int port)
{
    int on = 1, off = 0;
    struct sockaddr_in6 any6 = {.sin6_family = AF_INET6, .sin6_port = htons((unsigned short)port)};
    struct sockaddr_in any4 = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port)};
    int fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd >= 0) {
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
        if (!bind(fd, (struct sockaddr *)&any6, sizeof any6) && !listen(fd, 64))
            return fd;
        close(fd);
    }
    /* The kernel was started with ipv6.disable=1. */
    fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)&any4, sizeof any4) || listen(fd, 64))
        return -1;
    return fd;
}

/* The counter is in a file's page, so a restart of this server does not reset it; a boot does. */
static unsigned long *open_counter(void)
{
    int fd = open(RUN_DIR "/counter", O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0 || ftruncate(fd, sizeof(unsigned long)))
        return NULL;
    void *page = mmap(NULL, sizeof(unsigned long), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    return page == MAP_FAILED ? NULL : page;
}

static void tick(time_t *second)
{
    time_t t = now();
    if (t > *second) {
        *counter += (unsigned long)(t - *second);
        *second = t;
    }
    for (int i = 0; i < MAX_CLIENTS; i++)
        if (clients[i] && t - clients[i]->since > IDLE_SECONDS)
            drop(i);
}

int serve(int port)
{
    struct pollfd polls[MAX_CLIENTS + 1];
    int who[MAX_CLIENTS + 1];
    int listener = listen_on(port);
    time_t second = now();
    counter = open_counter();
    if (listener < 0 || !counter)
        return 1;
    signal(SIGPIPE, SIG_IGN);
    for (;;) {
        int count = 1;
        polls[0] = (struct pollfd){.fd = listener, .events = POLLIN};
        for (int i = 0; i < MAX_CLIENTS; i++)
            if (clients[i]) {
                polls[count] = (struct pollfd){.fd = clients[i]->fd, .events = clients[i]->answer.length ? POLLOUT : POLLIN};
                who[count++] = i;
            }
        poll(polls, (nfds_t)count, 1000);
        tick(&second);
        for (int k = 1; k < count; k++)
            if (polls[k].revents && clients[who[k]])
                serve_client(who[k], polls[k].revents);
        if (polls[0].revents)
            accept_client(listener);
    }
}
