;; Grows a table until it gets no more.
;; breaks: table_elements
;; serves
(table $t 0 funcref)
(func $plan (param i32 i32) (result i32)
    (loop $l (br_if $l (i32.ne (table.grow $t (ref.null func) (i32.const 1)) (i32.const -1))))
    (if (i32.ne (table.size $t) (i32.const 10000)) (then unreachable))
    (call $half_b))
