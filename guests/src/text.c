#include "guest.h"

#include <ctype.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

int read_text(const char *path, char *buffer, size_t size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    size_t used = 0;
    buffer[0] = 0;
    if (fd < 0)
        return -1;
    while (used + 1 < size) {
        ssize_t got = read(fd, buffer + used, size - 1 - used);
        if (got <= 0)
            break;
        used += (size_t)got;
    }
    close(fd);
    buffer[used] = 0;
    return (int)used;
}

int write_text(const char *path, const char *text, int mode)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode);
    size_t length = strlen(text);
    if (fd < 0)
        return -1;
    ssize_t put = write(fd, text, length);
    close(fd);
    return put == (ssize_t)length ? 0 : -1;
}

void strip(char *text)
{
    size_t length = strlen(text);
    while (length && isspace((unsigned char)text[length - 1]))
        text[--length] = 0;
}
