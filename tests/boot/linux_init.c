/* The first process of a Linux without anything else: says that it lives, forks, computes, and switches the power off. */

static long call(long number, long a, long b, long c, long d)
{
    register long r10 asm("r10") = d;

    asm volatile("syscall" : "+a" (number) : "D" (a), "S" (b), "d" (c), "r" (r10) : "rcx", "r11", "memory");
    return number;
}

static void say(const char *text)
{
    long size = 0;

    while ( text[size] )
        size++;
    call(1, 1, (long)text, size, 0);
}

static double root(double of)
{
    double x = of;

    for ( int i = 0; i < 30; i++ )
        x = (x + of / x) / 2;
    return x;
}

void _start(void)
{
    volatile double two = 2;
    int status = 0;
    long child = call(57 /* fork */, 0, 0, 0, 0);

    if ( !child )
    {
        say("userspace: a child\n");
        call(60 /* exit */, (int)(root(two) * 10) , 0, 0, 0);
    }
    call(61 /* wait4 */, child, (long)&status, 0, 0);
    say(status == 14 << 8 ? "userspace: it has computed the root of two\n" : "userspace: wrong\n");
    call(169 /* reboot */, 0xfee1dead, 672274793, 0x4321fedc, 0);
    for ( ; ; )
        ;
}
