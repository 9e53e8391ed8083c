/* A guest without an operating system: it drives the monitor's devices as a driver does and as none should, and says on the
 * serial line what came of it, one line each: "OK name" or "FAIL name: what". main.rs runs it and reads that.
 *
 * It has to run where KVM emulates each instruction: plain integer code, few instructions. It is entered as a Linux kernel
 * is, in 64-bit mode at its offset 0x200, with the first GiB mapped. */

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

#define ECAM 0xe0000000UL
#define LAPIC 0xfee00000UL
#define REG32(a) (*(volatile u32 *)(a))
#define REG16(a) (*(volatile u16 *)(a))
#define REG8(a) (*(volatile u8 *)(a))

static inline void out8(u16 port, u8 value) { __asm__ volatile("outb %0, %1" ::"a"(value), "Nd"(port)); }
static inline void out32(u16 port, u32 value) { __asm__ volatile("outl %0, %1" ::"a"(value), "Nd"(port)); }
static inline u32 in32(u16 port) { u32 v; __asm__ volatile("inl %1, %0" : "=a"(v) : "Nd"(port)); return v; }
static inline void barrier(void) { __asm__ volatile("mfence" ::: "memory"); }

/* The serial line. */
static void say_char(char c) { out8(0x3f8, c); }
static void say(const char *s) { while (*s) say_char(*s++); }
static void say_hex(u64 v) {
    say("0x");
    for (int shift = 28; shift >= 0; shift -= 4) say_char("0123456789abcdef"[v >> shift & 15]);
}
static void power_off(void) { for (;;) { out8(0x600, 5 << 2 | 1 << 5); __asm__ volatile("hlt"); } }
static void ok(const char *name) { say("OK "); say(name); say("\n"); }
static void fail(const char *name, const char *what, u64 value) {
    say("FAIL "); say(name); say(": "); say(what); say(" "); say_hex(value); say("\n");
    power_off();
}

/* Memory: 4 GiB mapped to themselves. */
static u64 top[512] __attribute__((aligned(4096))), pointers[512] __attribute__((aligned(4096)));
static u64 pages[4][512] __attribute__((aligned(4096)));
static void map_all(void) {
    for (u64 gib = 0; gib < 4; gib++) {
        pointers[gib] = (u64)pages[gib] | 3;
        for (u64 i = 0; i < 512; i++) pages[gib][i] = gib << 30 | i << 21 | 0x83 | (gib == 3 ? 0x18 : 0);
    }
    top[0] = (u64)pointers | 3;
    __asm__ volatile("mov %0, %%cr3" ::"r"(top) : "memory");
}

/* Interrupts: vectors 0x40 and on count. */
struct gate { u16 low, selector; u8 stack, type; u16 middle; u32 high, zero; } __attribute__((packed));
static struct gate idt[256] __attribute__((aligned(16)));
static volatile u64 fired[4];
struct frame;
#define HANDLER(n) \
    __attribute__((interrupt)) static void handler##n(struct frame *f) { (void)f; fired[n]++; REG32(LAPIC + 0xb0) = 0; }
HANDLER(0) HANDLER(1) HANDLER(2)
__attribute__((interrupt)) static void fault(struct frame *f, u64 code) { (void)f; fail("guest", "a fault", code); }
static void set_gate(int n, void *handler) {
    u64 at = (u64)handler;
    u16 code;
    __asm__ volatile("mov %%cs, %0" : "=r"(code));
    idt[n] = (struct gate){at, code, 0, 0x8e, at >> 16, at >> 32, 0};
}
static void init_interrupts(void) {
    set_gate(13, fault); set_gate(14, fault);
    set_gate(0x40, handler0); set_gate(0x41, handler1); set_gate(0x42, handler2);
    struct { u16 limit; u64 at; } __attribute__((packed)) idtr = {sizeof idt - 1, (u64)idt};
    __asm__ volatile("lidt %0" ::"m"(idtr));
    REG32(LAPIC + 0xf0) = 0x1ff;
    __asm__ volatile("sti");
}
static void wait_fired(int n, u64 count) {
    for (;;) {
        __asm__ volatile("cli");
        if (fired[n] >= count) break;
        __asm__ volatile("sti; hlt");
    }
    __asm__ volatile("sti");
}

/* PCI. */
static u64 function;
static u32 read_port(u32 device, u32 at) { out32(0xcf8, 1u << 31 | device << 11 | at); return in32(0xcfc); }
static void find_disk(void) {
    if (REG32(ECAM) != 0x0d578086) fail("bridge", "is", REG32(ECAM));
    for (u32 device = 0; device < 32; device++) {
        u32 id = REG32(ECAM + (device << 15));
        if (id != read_port(device, 0)) fail("ports", "differ at", device);
        if (id == 0x10421af4 && !function) function = ECAM + (device << 15);
    }
    if (!function) fail("disk", "not found", 0);
    /* The size of the registers, as every driver finds it out. */
    u32 bar = REG32(function + 0x10);
    REG32(function + 0x10) = ~0u;
    u32 size = ~(REG32(function + 0x10) & ~15u) + 1;
    REG32(function + 0x10) = bar;
    if (size != 0x8000) fail("registers", "have size", size);
    ok("bus");
}
static u64 common, notify, config, msix_table, msix_pending, msix_at;
static u32 notify_step;
static void find_structures(void) {
    u64 base = REG32(function + 0x10) & ~15u;
    u8 status = 0xff;
    REG16(function + 4) |= 6;
    for (u32 at = REG8(function + 0x34); at; at = REG8(function + at + 1)) {
        u64 cap = function + at;
        if (REG8(cap) == 0x11) {
            msix_at = cap;
            msix_table = base + (REG32(cap + 4) & ~7u);
            msix_pending = base + (REG32(cap + 8) & ~7u);
        }
        if (REG8(cap) != 9) continue;
        u64 place = base + REG32(cap + 8);
        switch (REG8(cap + 3)) {
        case 1: common = place; break;
        case 2: notify = place; notify_step = REG32(cap + 16); break;
        case 4: config = place; break;
        case 5: {
            /* The device's status, through configuration space. */
            REG32(cap + 8) = 0x14; REG32(cap + 12) = 1;
            status = REG8(cap + 16);
        }
        }
    }
    if (!common || !notify || !config || !msix_at) fail("capabilities", "are missing", common);
    if (status != REG8(common + 0x14)) fail("window", "reads", status);
    ok("capabilities");
}

/* The disk. */
#define SIZE 8
#define QUEUES 2
struct desc { u64 addr; u32 len; u16 flags, next; };
struct ring {
    struct desc desc[SIZE] __attribute__((aligned(16)));
    struct { u16 flags, idx, ring[SIZE], event; } avail __attribute__((aligned(4)));
    struct { u16 flags, idx; struct { u32 id, len; } ring[SIZE]; u16 event; } used __attribute__((aligned(4)));
};
static volatile struct ring rings[QUEUES] __attribute__((aligned(4096)));
static struct { u32 type, zero; u64 sector; } header[QUEUES];
static volatile u8 status[QUEUES];
static u8 data[QUEUES][512] __attribute__((aligned(512)));

static void set_vector(u32 n, u32 masked) {
    u64 at = msix_table + n * 16;
    REG32(at) = 0xfee00000; REG32(at + 4) = 0; REG32(at + 8) = 0x40 + n; REG32(at + 12) = masked;
}
static void reset(void) {
    REG8(common + 0x14) = 0;
    while (REG8(common + 0x14) != 0) {}
}
static void start(void) {
    reset();
    REG8(common + 0x14) = 3;
    /* What is not offered cannot be accepted. */
    REG32(common + 8) = 0; REG32(common + 12) = ~0u;
    REG32(common + 8) = 1; REG32(common + 12) = 1;
    REG8(common + 0x14) = 11;
    if (REG8(common + 0x14) & 8) fail("features", "all accepted", 0);
    REG32(common + 8) = 0; REG32(common + 12) = 0;
    REG8(common + 0x14) = 11;
    if (!(REG8(common + 0x14) & 8)) fail("features", "version 1 refused", 0);
    if (REG16(common + 0x12) != QUEUES) fail("queues", "there are", REG16(common + 0x12));
    REG16(msix_at + 2) = 1 << 15;
    for (u32 n = 0; n <= QUEUES; n++) set_vector(n, 0);
    REG16(common + 0x10) = 2;
    for (u32 q = 0; q < QUEUES; q++) {
        for (u64 i = 0; i < sizeof rings[q]; i++) ((volatile u8 *)&rings[q])[i] = 0;
        REG16(common + 0x16) = q;
        REG16(common + 0x18) = SIZE;
        /* A vector that does not exist is refused. */
        REG16(common + 0x1a) = 77;
        if (REG16(common + 0x1a) != 0xffff) fail("vector", "77 is", REG16(common + 0x1a));
        REG16(common + 0x1a) = q;
        if (REG16(common + 0x1a) != q) fail("vector", "refused", q);
        u64 parts[3] = {(u64)rings[q].desc, (u64)&rings[q].avail, (u64)&rings[q].used};
        for (u32 i = 0; i < 3; i++) { REG32(common + 0x20 + i * 8) = parts[i]; REG32(common + 0x24 + i * 8) = parts[i] >> 32; }
        REG16(common + 0x1c) = 1;
        volatile struct desc *d = rings[q].desc;
        d[0].addr = (u64)&header[q]; d[0].len = 16; d[0].flags = 1; d[0].next = 1;
        d[1].addr = (u64)data[q]; d[1].len = 512; d[1].flags = 1; d[1].next = 2;
        d[2].addr = (u64)&status[q]; d[2].len = 1; d[2].flags = 2;
    }
    REG8(common + 0x14) = 15;
}
static void offer(u32 q, u32 type, u64 sector) {
    header[q].type = type; header[q].sector = sector;
    rings[q].desc[1].flags = type == 0 ? 3 : 1;
    status[q] = 0xff;
    rings[q].avail.ring[rings[q].avail.idx % SIZE] = 0;
    barrier();
    rings[q].avail.idx++;
    barrier();
    REG16(notify + q * notify_step) = q;
}
/* An interrupt need not mean an answer: a queue that starts may interrupt once for what its last server owed. But an answer
 * means an interrupt, or this sleeps for ever. */
static void ask(u32 q, u32 type, u64 sector) {
    u64 before = fired[q];
    offer(q, type, sector);
    for (;;) {
        __asm__ volatile("cli");
        if (fired[q] > before && rings[q].used.idx == rings[q].avail.idx) break;
        __asm__ volatile("sti; hlt");
    }
    __asm__ volatile("sti");
    if (status[q] != 0) fail("request", "status", status[q]);
}
static void fill(u32 q, u64 stamp) { for (u32 i = 0; i < 64; i++) ((u64 *)data[q])[i] = stamp; }
static void expect(const char *name, u32 q, u64 stamp) {
    for (u32 i = 0; i < 64; i += 21) if (((volatile u64 *)data[q])[i] != stamp) fail(name, "reads", ((u64 *)data[q])[i]);
}

static void test_rings(void) {
    /* Around each ring several times, on both queues. */
    for (u64 n = 0; n < 3 * SIZE; n++) {
        for (u32 q = 0; q < QUEUES; q++) { fill(q, 0x1000 * q + n); ask(q, 1, 100 * q + n); }
    }
    for (u64 n = 0; n < 3 * SIZE; n += 5) {
        for (u32 q = 0; q < QUEUES; q++) { ask(1 - q, 0, 100 * q + n); expect("rings", 1 - q, 0x1000 * q + n); }
    }
    ok("rings");
}
static void test_masks(void) {
    /* A vector, then all of them: what comes meanwhile is pending, and fires when the mask is lifted. */
    for (int all = 0; all < 2; all++) {
        u64 before = fired[0];
        if (all) REG16(msix_at + 2) = 3 << 14; else REG32(msix_table + 12) = 1;
        offer(0, 0, 0);
        while (rings[0].used.idx != rings[0].avail.idx) {}
        while (!(REG32(msix_pending) & 1)) {}
        if (fired[0] != before) fail("masks", "fired", all);
        if (all) REG16(msix_at + 2) = 1 << 15; else REG32(msix_table + 12) = 0;
        wait_fired(0, before + 1);
        if (REG32(msix_pending) & 1) fail("masks", "still pending", all);
    }
    ok("masks");
}
static void test_moved_vector(void) {
    /* The vector changes its message while it is masked. */
    REG32(msix_table + 12) = 1; REG32(msix_table + 8) = 0x42; REG32(msix_table + 12) = 0;
    u64 before = fired[2];
    offer(0, 0, 0);
    wait_fired(2, before + 1);
    set_vector(0, 0);
    ask(0, 0, 0);
    ok("moved-vector");
}
static void test_moved_registers(void) {
    /* The registers go elsewhere, and with them what KVM listens to. */
    u32 bar = REG32(function + 0x10), moved = bar + 0x100000;
    REG16(function + 4) &= ~2;
    REG32(function + 0x10) = moved;
    REG16(function + 4) |= 2;
    find_structures();
    ask(0, 0, 0);
    REG32(function + 0x10) = bar;
    find_structures();
    ask(1, 0, 0);
    ok("moved-registers");
}
static void test_resets(void) {
    for (int n = 0; n < 3; n++) {
        start();
        fill(0, 0xabc0 + n);
        ask(0, 1, 7);
        /* One is on its way when the reset comes. */
        offer(1, 0, 7);
        reset();
        if (REG16(common + 0x10) != 0xffff) fail("resets", "a vector stays", n);
    }
    start();
    ask(1, 0, 7);
    expect("resets", 1, 0xabc2);
    ok("resets");
}
static void test_nonsense(void) {
    /* Reads and writes that nobody should do change nothing. */
    u64 base = REG32(function + 0x10) & ~15u;
    for (u64 at = base; at < base + 0x8000; at += 0x1fc) (void)REG32(at);
    REG32(function) = 0; REG8(function + 0x34) = 0; REG32(function + 0x14) = ~0u;
    REG16(common + 0x16) = 99;
    if (REG16(common + 0x18) != 0) fail("nonsense", "queue 99 has size", REG16(common + 0x18));
    REG16(common + 0x1c) = 1; REG32(common + 0x20) = 1;
    REG16(notify + 99 * notify_step) = 99;
    (void)REG32(0xd0000000UL); REG32(0xd0000000UL) = 1;
    ask(0, 0, 0);
    ok("nonsense");
}

/* What the monitor's --cmdline says. */
#define COMMAND_LINE ((volatile char *)0x20000)

/* The disk gets another size while it is used: that is an interrupt, another generation, and another capacity. */
static void watch_size(void) {
    u8 generation = REG8(common + 0x15);
    say("SIZE "); say_hex(REG32(config)); say("\n");
    wait_fired(2, 1);
    if (REG8(common + 0x15) == generation) fail("size", "of the same generation", generation);
    say("SIZE "); say_hex(REG32(config)); say("\n");
    ask(0, 0, REG32(config) - 1);
    ok("size");
}

/* As many requests as the command line says: a number, and nothing else. */
static void test_many(void) {
    u64 count = 0;
    for (volatile char *c = COMMAND_LINE; *c >= '0' && *c <= '9'; c++) count = count * 10 + *c - '0';
    for (u64 n = 0; n < count; n++) ask(n & 1, n & 1, n & 63);
    ok("many");
}

__attribute__((used)) static void run(void) {
    map_all();
    init_interrupts();
    find_disk();
    find_structures();
    start();
    ok("start");
    if (*COMMAND_LINE == 's') { watch_size(); say("DONE\n"); power_off(); }
    test_rings();
    test_masks();
    test_moved_vector();
    test_moved_registers();
    test_nonsense();
    test_resets();
    ask(0, 4, 0);
    test_many();
    say("DONE\n");
    power_off();
}

static u8 stack[16384] __attribute__((aligned(16), used));
__attribute__((section(".start"), naked, used)) void _start(void) {
    __asm__ volatile("lea stack+16384(%rip), %rsp\n call run\n 1: hlt\n jmp 1b");
}
