/* The tiny guest's own program: PID 1, module loader, cloud-init reader and web server. */
#ifndef GUEST_H
#define GUEST_H

#include <stddef.h>

#define RUN_DIR "/run/guest"
#define SEED_DIR RUN_DIR "/seed"

/* text.c */
int read_text(const char *path, char *buffer, size_t size); /* bytes read, 0-terminated; -1 if unreadable */
int write_text(const char *path, const char *text, int mode);
void strip(char *text);                                      /* removes trailing white space */

/* modules.c */
void modules_open(const char *index);
int module_load(const char *name);
void module_load_alias(const char *alias);
void modules_coldplug(void);

/* seed.c */
int seed_find(void);          /* 1 when a NoCloud disk was found and copied to SEED_DIR */
void seed_apply(void);        /* applies its #cloud-config */

/* disk.c */
int disk_read(const char *name, char *buffer, size_t size);          /* bytes, or -errno */
int disk_write(const char *name, const char *data, size_t length);   /* 0, or -errno */

/* report.c */
struct out { char *data; size_t length, size; };
void out_bytes(struct out *out, const char *bytes, size_t length);
void out_text(struct out *out, const char *text);
void out_format(struct out *out, const char *format, ...) __attribute__((format(printf, 2, 3)));
void out_json_bytes(struct out *out, const char *bytes, size_t length);
void report(struct out *out, unsigned long counter);

/* http.c */
int serve(int port);

/* dhcp6.c is absent on purpose: IPv6 addresses come from router advertisements, which the kernel handles itself. */
#endif
