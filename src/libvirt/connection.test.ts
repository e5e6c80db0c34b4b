import assert from 'node:assert/strict'
import { mkdtemp, rm } from 'node:fs/promises'
import { createServer, type Server, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, it } from 'node:test'
import { setTimeout } from 'node:timers/promises'
import { Failure } from '../base/failure.ts'
import { connectLibvirt, type LibvirtConnection } from './connection.ts'
import { isFailure, libvirtCode } from './libvirt-errors.ts'
import { parseLibvirtUri } from './libvirt-uri.ts'
import { keepaliveProcedures, procedures, programs } from './protocol.ts'
import { encodeMessage, MessageSplitter, messageTypes, type RpcMessage, XdrWriter } from './rpc-wire.ts'

type Answer = (call: RpcMessage, socket: Socket) => Buffer | undefined

const reply = (call: RpcMessage, payload: Buffer = Buffer.alloc(0), status = 0) =>
  encodeMessage({ ...call, type: messageTypes.reply, status, payload })

const error = (call: RpcMessage, code: number, text: string) =>
  reply(call, new XdrWriter().i32(code).i32(10).optionalString(text).i32(2).bytes(), 1)

/** A daemon that lets everybody in and answers as told. */
class FakeDaemon implements AsyncDisposable {
  readonly path: string
  readonly calls: RpcMessage[] = []
  readonly sockets = new Set<Socket>()
  answer: Answer = (call) => reply(call)
  #server: Server | undefined

  constructor(directory: string) {
    this.path = join(directory, 'sock')
  }

  get uri(): string {
    return `qemu+unix:///system?socket=${this.path}`
  }

  async start(): Promise<void> {
    this.#server = createServer((socket) => this.#serve(socket))
    await new Promise<void>((resolve) => this.#server?.listen(this.path, resolve))
  }

  async stop(): Promise<void> {
    for (const socket of this.sockets) socket.destroy()
    this.sockets.clear()
    await new Promise((resolve) => this.#server?.close(resolve))
  }

  #serve(socket: Socket): void {
    this.sockets.add(socket)
    const splitter = new MessageSplitter()
    socket.on('error', () => undefined)
    socket.on('data', (chunk: Buffer) => {
      for (const call of splitter.push(chunk)) {
        const isGreeting = call.procedure === procedures.authList.number || call.procedure === 1
        if (isGreeting) socket.write(reply(call, new XdrWriter().u32(0).bytes()))
        else {
          this.calls.push(call)
          const answer = this.answer(call, socket)
          if (answer !== undefined) socket.write(answer)
        }
      }
    })
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop()
  }
}

async function withDaemon(body: (daemon: FakeDaemon) => Promise<void>): Promise<void> {
  const directory = await mkdtemp(join(tmpdir(), 'umbra-'))
  {
    await using daemon = new FakeDaemon(directory)
    await daemon.start()
    await body(daemon)
  }
  await rm(directory, { recursive: true })
}

const code = (expected: string) => (thrown: unknown) => isFailure(thrown, expected)

describe('a connection to libvirt', () => {
  it('gives each answer to its call, in whatever order they come', () =>
    withDaemon(async (daemon) => {
      const waiting: RpcMessage[] = []
      daemon.answer = (call, socket) => {
        waiting.push(call)
        if (waiting.length === 3) {
          for (const each of waiting.reverse()) socket.write(reply(each, new XdrWriter().u32(each.serial).bytes()))
        }
        return undefined
      }
      await using connection = await connectLibvirt(daemon.uri)
      const calls = [1, 2, 3].map(() => connection.call(procedures.connectGetVersion))
      const serials = (await Promise.all(calls)).map((answer) => answer.u32())
      assert.equal(new Set(serials).size, 3)
      assert.deepEqual(serials, serials.toSorted())
    }))

  const streamed = (call: RpcMessage, status: number, payload: Buffer = Buffer.alloc(0)) =>
    encodeMessage({ ...call, type: messageTypes.stream, status, payload })
  const download = (connection: LibvirtConnection, maxBytes = 100, deadlineMs = 5_000) =>
    connection.download(procedures.domainScreenshot, new XdrWriter(), { deadlineMs, maxBytes, vm: 'web01' })

  it('collects a stream that follows the answer to a call, and says that it has it', () =>
    withDaemon(async (daemon) => {
      const ends: RpcMessage[] = []
      daemon.answer = (call, socket) => {
        if (call.type === messageTypes.stream) {
          ends.push(call)
          return streamed(call, 0)
        }
        if (call.procedure !== procedures.domainScreenshot.number) return reply(call)
        for (const part of ['some ', 'bytes', '']) socket.write(streamed(call, 2, Buffer.from(part)))
        return undefined
      }
      const whole = daemon.answer
      daemon.answer = (call, socket) => {
        if (call.procedure === procedures.domainScreenshot.number && call.type === messageTypes.call) {
          socket.write(reply(call, new XdrWriter().optionalString('image/png').bytes()))
        }
        return whole(call, socket)
      }
      await using connection = await connectLibvirt(daemon.uri)
      assert.equal((await download(connection)).toString(), 'some bytes')
      assert.equal((await download(connection)).toString(), 'some bytes')
      await connection.call(procedures.connectGetVersion) // the end of each stream has been taken as such
      assert.deepEqual(
        ends.map(({ status, payload }) => [status, payload.length]),
        [
          [0, 0],
          [0, 0],
        ],
      )
    }))

  it('rejects a stream that is refused, breaks, never ends or is too long', () =>
    withDaemon(async (daemon) => {
      const answers: Answer[] = [
        (call) => error(call, 55, 'no screen'),
        (call) =>
          Buffer.concat([
            reply(call),
            streamed(call, 1, new XdrWriter().i32(1).i32(10).optionalString('lost').bytes()),
          ]),
        (call) => reply(call),
        (call) => Buffer.concat([reply(call), streamed(call, 2, Buffer.alloc(101))]),
      ]
      daemon.answer = (call, socket) => (call.type === messageTypes.call ? answers.shift()?.(call, socket) : undefined)
      await using connection = await connectLibvirt(daemon.uri)
      await assert.rejects(download(connection), code('HYPERVISOR_REFUSED'))
      await assert.rejects(download(connection), code('HYPERVISOR_REFUSED'))
      await assert.rejects(download(connection, 100, 30), code('DEADLINE_EXCEEDED'))
      await assert.rejects(download(connection), code('HYPERVISOR_PROTOCOL'))
    }))

  it('rejects a call whose deadline has passed, and drops its late answer', () =>
    withDaemon(async (daemon) => {
      let late: RpcMessage | undefined
      daemon.answer = (call, socket) => {
        if (late === undefined) {
          late = call
          return undefined
        }
        socket.write(reply(late))
        return reply(call, new XdrWriter().string('here').bytes())
      }
      await using connection = await connectLibvirt(daemon.uri)
      await assert.rejects(
        connection.call(procedures.domainSuspend, new XdrWriter(), { deadlineMs: 30 }),
        code('DEADLINE_EXCEEDED'),
      )
      assert.equal((await connection.call(procedures.connectGetHostname)).string(), 'here')
    }))

  it('opens another lane before one slow call could hold up the next ones', () =>
    withDaemon(async (daemon) => {
      daemon.answer = (call) => (call.procedure === procedures.domainSuspend.number ? undefined : reply(call))
      await using connection = await connectLibvirt(daemon.uri)
      const slow = Array.from({ length: 9 }, () => connection.call(procedures.domainSuspend).catch(() => undefined))
      await connection.call(procedures.domainResume)
      assert.equal(daemon.sockets.size, 3)
      await connection[Symbol.asyncDispose]()
      await Promise.all(slow)
    }))

  it('repeats a reading call when the daemon was restarted, and reconnects for the next ones', () =>
    withDaemon(async (daemon) => {
      await using connection = await connectLibvirt(daemon.uri)
      daemon.answer = () => undefined
      const reading = connection.call(procedures.connectGetHostname)
      await setTimeout(20)
      await daemon.stop()
      daemon.answer = (call) => reply(call, new XdrWriter().string('again').bytes())
      await setTimeout(200)
      await daemon.start()
      assert.equal((await reading).string(), 'again')
    }))

  it('never repeats a call that changes something', () =>
    withDaemon(async (daemon) => {
      await using connection = await connectLibvirt(daemon.uri)
      daemon.answer = (_call, socket) => {
        socket.destroy()
        return undefined
      }
      await assert.rejects(connection.call(procedures.domainDestroy), code('HYPERVISOR_UNREACHABLE'))
      assert.equal(daemon.calls.length, 1)
      daemon.answer = (call) => reply(call)
      await connection.call(procedures.domainDestroy)
      assert.equal(daemon.calls.length, 2)
    }))

  it('rejects what is pending when it is given back, and refuses later calls', () =>
    withDaemon(async (daemon) => {
      daemon.answer = () => undefined
      const connection = await connectLibvirt(daemon.uri)
      const pending = assert.rejects(connection.call(procedures.connectGetHostname), code('HYPERVISOR_UNREACHABLE'))
      await setTimeout(20)
      await connection[Symbol.asyncDispose]()
      await pending
      await assert.rejects(connection.call(procedures.connectGetHostname), code('HYPERVISOR_UNREACHABLE'))
    }))

  it('answers the pings of the daemon', () =>
    withDaemon(async (daemon) => {
      let ponged: (call: RpcMessage) => void = () => undefined
      const pong = new Promise<RpcMessage>((resolve) => {
        ponged = resolve
      })
      daemon.answer = (call) => {
        if (call.program === programs.keepalive) ponged(call)
        return undefined
      }
      await using _connection = await connectLibvirt(daemon.uri)
      const payload = Buffer.alloc(0)
      const ping = { program: programs.keepalive, version: 1, procedure: keepaliveProcedures.ping, serial: 0 }
      for (const socket of daemon.sockets) socket.write(encodeMessage({ ...ping, type: 2, status: 0, payload }))
      assert.equal((await pong).procedure, keepaliveProcedures.pong)
    }))

  it('gives up a daemon that sends garbage', () =>
    withDaemon(async (daemon) => {
      daemon.answer = () => Buffer.from('HTTP/1.1 400 Bad Request\r\n\r\n')
      await using connection = await connectLibvirt(daemon.uri)
      await assert.rejects(connection.call(procedures.domainSuspend), code('HYPERVISOR_PROTOCOL'))
    }))

  it('gives up a daemon that answers what was never asked', () =>
    withDaemon(async (daemon) => {
      daemon.answer = (call) => reply({ ...call, serial: 4711 })
      await using connection = await connectLibvirt(daemon.uri)
      await assert.rejects(connection.call(procedures.domainSuspend), code('HYPERVISOR_PROTOCOL'))
    }))

  it('says by a code of our own, and by the number of libvirt, what was refused', () =>
    withDaemon(async (daemon) => {
      await using connection = await connectLibvirt(daemon.uri)
      const cases = [
        [42, 'VM_NOT_FOUND'],
        [86, 'GUEST_NOT_RESPONDING'],
        [112, 'GUEST_NOT_RESPONDING'],
        [113, 'GUEST_REFUSED'],
        [68, 'VM_BUSY'],
        [1, 'HYPERVISOR_REFUSED'],
      ] as const
      for (const [number, expected] of cases) {
        daemon.answer = (call) => error(call, number, 'for a reason')
        await assert.rejects(connection.call(procedures.domainSuspend, new XdrWriter(), { vm: 'web' }), (thrown) => {
          assert.ok(thrown instanceof Failure)
          assert.deepEqual([thrown.code, libvirtCode(thrown)], [expected, number])
          return true
        })
      }
    }))

  it('says why nobody answers', async () => {
    await assert.rejects(connectLibvirt('qemu+unix:///system?socket=/nowhere'), code('HYPERVISOR_UNREACHABLE'))
  })
})

describe('addresses of libvirt', () => {
  it('lead to local sockets', () => {
    assert.deepEqual(parseLibvirtUri('qemu+unix:///system?socket=/x/sock').sockets, ['/x/sock'])
    assert.ok(parseLibvirtUri('qemu:///system').sockets.includes('/run/libvirt/virtqemud-sock'))
    const session = parseLibvirtUri('qemu:///session', { XDG_RUNTIME_DIR: '/run/user/1' })
    assert.equal(session.driverUri, 'qemu:///session')
    assert.ok(session.sockets.includes('/run/user/1/libvirt/libvirt-sock'))
  })

  it('of other drivers, hosts and transports are refused', () => {
    const others = ['qemu+ssh://host/system', 'qemu://host/system', 'xen:///system', 'qemu:///other', 'nonsense', '']
    const odd = ['qemu:///system?socket=/x', 'qemu+unix:///system?socket=x', 'qemu+unix:///system?mode=legacy']
    for (const uri of [...others, ...odd]) {
      assert.throws(() => parseLibvirtUri(uri), code('HYPERVISOR_URI_UNSUPPORTED'), uri)
    }
  })
})
