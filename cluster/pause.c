/* Holds a pod's namespaces: sleeps, reaps orphans, exits on SIGTERM. */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static void reap(int number)
{
    (void)number;
    while (waitpid(-1, NULL, WNOHANG) > 0)
        ;
}

static void end(int number)
{
    (void)number;
    _exit(0);
}

static int handle(int number, void (*handler)(int))
{
    struct sigaction action;

    memset(&action, 0, sizeof action);
    action.sa_handler = handler;
    return sigaction(number, &action, NULL);
}

int main(void)
{
    if (handle(SIGCHLD, reap) || handle(SIGTERM, end) || handle(SIGINT, end)) {
        perror("pause: sigaction");
        return 1;
    }
    for (;;)
        pause();
}
