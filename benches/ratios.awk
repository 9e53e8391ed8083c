# What `time` said in lines "PROGRAM WAY ELAPSED USER SYSTEM", as ratios of medians: -v ours=NAME -v "ways=WAY WAY ...".
function median(list, count,  i, j, kept) {
  for (i = 1; i <= count; i++) for (j = i + 1; j <= count; j++)
    if (list[j] < list[i]) { kept = list[i]; list[i] = list[j]; list[j] = kept }
  return list[int((count + 1) / 2)]
}
function ratio(way, what,  i, n, m, a, c) {
  for (i = 1; i <= NR; i++) if (of[i] == way) {
    if (by[i] == ours) a[++n] = value[i, what]; else c[++m] = value[i, what]
  }
  return median(a, n) / median(c, m)
}
{ by[NR] = $1; of[NR] = $2; value[NR, "time"] = $3; value[NR, "cpu"] = $4 + $5 }
END {
  count = split(ways, all, " ")
  for (w = 1; w <= count; w++)
    printf "%-14s qcow takes %.2f of the time of qemu-img, and %.2f of its processor time\n", all[w], ratio(all[w], "time"), ratio(all[w], "cpu")
}
