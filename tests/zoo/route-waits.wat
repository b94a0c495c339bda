;; Fuel for ever, but no time.
;; limits: route_fuel = 9000000000000000000, route_milliseconds = 5
;; breaks: route_milliseconds
;; traps: `route` | interrupt
(func $route (param i32 i32 i32) (result i32) (loop $l (br $l)) unreachable)
