/* A marker at the start of a data disk, so that a test can see whether data survives. */
#define _GNU_SOURCE
#include "guest.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MARKER 4096
static const char magic[8] = "HLMARK1\n";

/* `name` is a block device's name ("vdb") or a disk's serial. Partitions and anything with a slash are refused. */
static int device_path(const char *name, char *path, size_t size)
{
    char file[300], serial[128];
    struct stat st;
    if (!*name || strchr(name, '/') || name[0] == '.' || strlen(name) > 64)
        return -EINVAL;
    snprintf(file, sizeof file, "/sys/block/%s", name);
    if (stat(file, &st) == 0) {
        snprintf(path, size, "/dev/%s", name);
        return 0;
    }
    DIR *dir = opendir("/sys/block");
    if (!dir)
        return -ENODEV;
    struct dirent *entry;
    int result = -ENODEV;
    while (result && (entry = readdir(dir))) {
        if (entry->d_name[0] == '.')
            continue;
        snprintf(file, sizeof file, "/sys/block/%s/serial", entry->d_name);
        if (read_text(file, serial, sizeof serial) <= 0)
            continue;
        strip(serial);
        if (!strcmp(serial, name)) {
            snprintf(path, size, "/dev/%s", entry->d_name);
            result = 0;
        }
    }
    closedir(dir);
    return result;
}

int disk_read(const char *name, char *buffer, size_t size)
{
    char path[300], block[MARKER];
    int error = device_path(name, path, sizeof path);
    if (error)
        return error;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    posix_fadvise(fd, 0, MARKER, POSIX_FADV_DONTNEED); /* what the disk holds, not the page cache */
    memset(block, 0, sizeof block);
    ssize_t got = pread(fd, block, sizeof block, 0);
    error = errno;
    close(fd);
    if (got < 0)
        return -error;
    if (memcmp(block, magic, sizeof magic))
        return -ENOENT;
    size_t length = strnlen(block + sizeof magic, MARKER - sizeof magic);
    if (length > size)
        length = size;
    memcpy(buffer, block + sizeof magic, length);
    return (int)length;
}

/* Only a disk that is empty at its start, or holds such a marker, is written: never a file system. */
static int writable(int fd)
{
    char block[MARKER];
    memset(block, 0, sizeof block);
    if (pread(fd, block, sizeof block, 0) < 0)
        return -errno;
    if (!memcmp(block, magic, sizeof magic))
        return 0;
    for (size_t i = 0; i < sizeof block; i++)
        if (block[i])
            return -EEXIST;
    return 0;
}

int disk_write(const char *name, const char *data, size_t length)
{
    char path[300], block[MARKER];
    if (length > MARKER - sizeof magic)
        return -EFBIG;
    int error = device_path(name, path, sizeof path);
    if (error)
        return error;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    error = writable(fd);
    memset(block, 0, sizeof block);
    memcpy(block, magic, sizeof magic);
    memcpy(block + sizeof magic, data, length);
    if (!error && (pwrite(fd, block, sizeof block, 0) != (ssize_t)sizeof block || fsync(fd)))
        error = errno ? -errno : -EIO;
    close(fd);
    return error;
}
